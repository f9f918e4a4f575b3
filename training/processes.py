"""Values that all processes of a run must agree on. With one process nothing happens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes; every process must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def share_changed(tensors: Sequence[Tensor], changed: Sequence[bool]) -> None:
    """Give all processes rank 0's values of tensors that any of them changed.

    Args:
        tensors: the same ones in the same order on every process.
        changed: whether this process wrote into each.
    """
    flags = torch.tensor(changed, dtype=torch.float32, device=tensors[0].device)
    distributed.all_reduce(flags)
    for tensor, flag in zip(tensors, flags.tolist(), strict=True):
        if flag:
            distributed.broadcast(tensor, src=0)
