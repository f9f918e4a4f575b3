"""Values that all processes of a run must agree on. With one process nothing happens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"))


def launched_as() -> tuple[int, int]:
    """This process's rank and the number of processes, as `torchrun` or `accelerate launch` say.

    For work that is shared without talking: no process group is made. (0, 1) where nothing was
    launched.

    Raises:
        ValueError: the environment's RANK and WORLD_SIZE do not fit each other.
    """
    rank, world = (os.environ.get(name, default) for name, default in _PLACE)
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ValueError(f"RANK {rank!r} and WORLD_SIZE {world!r} are no place among processes")
    return int(rank), int(world)


def num_processes() -> int:
    """Processes of this run."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


class _Sum(torch.autograd.Function):
    """Σ over processes, whose gradient is the sum of all processes' gradients of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient; every process must call this.

    What a loss does with it counts once on every process, so that gradients that are averaged over
    processes, as a training's are, come out as those of one process with the whole batch.
    """
    if num_processes() == 1:
        return tensor
    total = _Sum.apply(tensor)
    assert isinstance(total, Tensor)
    return total


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes; every process must call this."""
    if num_processes() == 1:
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total / num_processes()


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
