"""Which process this is, and values that all must agree on. With one process nothing happens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Place:
    """Which of several processes this is, for work that needs no word between them.

    Attributes:
        rank: from 0.
        world: processes in all.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is not one of {self.world} processes")

    def share(self, count: int) -> range:
        """This process's part of the numbers below `count`; all parts together are all of them."""
        return range(self.rank, count, self.world)


def place_from_environment(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun (or any launcher that sets RANK and WORLD_SIZE) gave this process.

    Raises:
        ValueError: one of the two is set without the other, or they are no such numbers.
    """
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None and world is None:
        return Place()
    if not (rank and world and rank.isdigit() and world.isdigit()):
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world}: set both to numbers, or neither")
    return Place(int(rank), int(world))


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
