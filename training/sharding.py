"""Weights sharded over processes (FSDP2), behind the few questions that the loop asks.

The layers are sharded (`training.layers`): of their weights, gradients and optimiser states each
process keeps its rows, and has the whole of a layer only while it runs. All else is whole on every
process: embeddings, codebooks and heads are little beside the layers, and a stage may write into
them after a step. Checkpoints hold whole tensors, so a run may go on with any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.layers import layers_of


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process has only its rows of a tensor (a DTensor, whose import takes a second)."""
    return hasattr(tensor, "full_tensor")


def shard(module: nn.Module) -> None:
    """Spread a module's layers over all processes, which begin with the weights of the first.

    The module keeps its parameters' names; the parameters are others afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = layers_of(module)
    for tensor in (*module.parameters(), *module.buffers()):
        distributed.broadcast(tensor.detach(), src=0)
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    rest = {parameter for parameter in module.parameters() if parameter not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=rest)


def local_rows(tensor: Tensor) -> Tensor:
    """This process's rows; writing into them writes into the tensor."""
    sharded: Any = tensor.detach()
    return sharded.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All rows, on the CPU where the tensor is sharded; then every process must call this."""
    sharded: Any = tensor.detach()
    return sharded.full_tensor().cpu() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as a parameter of its shape is; any other as it is."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    model: Any = parameter
    # every process has the whole and takes its own rows
    return distribute_tensor(
        tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None
    )


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average over processes the gradients of parameters that are not sharded."""
    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """As `clip_grad_norm_`, where some are sharded; 0 = no limit.

    Returns:
        () global norm before clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    rows = [local_rows(gradient) for gradient in gradients if is_sharded(gradient)]
    rest = [gradient for gradient in gradients if not is_sharded(gradient)]
    squares = nn.utils.get_total_norm(rows).square()
    distributed.all_reduce(squares)
    norm = (squares + nn.utils.get_total_norm(rest).square()).sqrt()
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*rows, *rest):
            gradient.mul_(factor)
    return norm
