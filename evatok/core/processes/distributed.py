"""Rank of this process, and exchange of values between processes; no effect with one process.

torchrun, or any launcher that sets RANK and WORLD_SIZE, says which process this is. Work that is
cut beforehand (`RankInfo.shard`) needs no word between processes; a training joins them (`joined`).

Shape letters: B rows of this process, L their values laid end to end, P picks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from evatok.core.errors import EvatokError

COLLECTIVE = timedelta(minutes=30)  # a step's collective that takes longer is a failure
WAIT = timedelta(days=30)  # for what only the first process does: validating, saving

_waiting: Any = None  # of all processes, with the longer limit


@dataclass(frozen=True)
class RankInfo:
    """Rank and number of processes, for work that needs no communication.

    Attributes:
        rank: from 0.
        world: processes in all.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise EvatokError(f"rank {self.rank} is not one of {self.world} processes")

    def shard(self, count: int) -> range:
        """This process's part of the numbers below `count`; all parts together are all of them."""
        return range(self.rank, count, self.world)


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """The rank that torchrun (or any launcher that sets RANK and WORLD_SIZE) gave this process.

    Raises:
        EvatokError: one of the two is set without the other, or they are no such numbers.
    """
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None and world is None:
        if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and (
            "MASTER_ADDR" in environment
        ):
            raise EvatokError(
                "accelerate launch --cpu starts one process whatever --num_processes says: "
                "start several with torchrun --nproc-per-node 2 -m evatok …"
            )
        return RankInfo()
    if not (rank and world and rank.isdigit() and world.isdigit()):
        raise EvatokError(f"RANK={rank} and WORLD_SIZE={world}: set both to numbers, or neither")
    return RankInfo(int(rank), int(world))


@contextmanager
def joined(device: torch.device) -> Iterator[RankInfo]:
    """Join the processes that a launcher has started (NCCL on CUDA, else gloo), and leave them.

    Processes that are joined already stay so: the outermost `joined` makes the group and ends it,
    after all have come to its end.

    Args:
        device: where this process computes; a CUDA device is the current one already.

    Yields:
        Which of them this is.
    """
    global _waiting
    process = rank_from_environment()
    if distributed.is_initialized():
        process = RankInfo(distributed.get_rank(), distributed.get_world_size())
    if process.world == 1 or distributed.is_initialized():
        yield process
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=COLLECTIVE)
    _waiting = distributed.new_group(backend="gloo", timeout=WAIT)
    yield process  # not in a `try`: the group of a process that fails ends with the process
    wait_for_all()
    _waiting = None
    distributed.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process has come here, however long the first one works.

    A collective of the training's own group would fail after `COLLECTIVE`.
    """
    if num_processes() > 1:
        distributed.barrier(_waiting)


def first_says(is_fine: bool) -> bool:
    """Broadcast of the first process's value."""
    if num_processes() == 1:
        return is_fine
    told = torch.tensor(int(is_fine))
    distributed.broadcast(told, src=0, group=_waiting)
    return bool(told)


def gather(value: Any) -> list[Any]:
    """JSON-able values of all processes, in order of rank; every process must call this."""
    if num_processes() == 1:
        return [value]
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_processes())]
    distributed.all_gather(sizes, torch.tensor([len(mine)]), group=_waiting)
    longest = max(map(int, sizes))
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    distributed.all_gather(parts, F.pad(mine, (0, longest - len(mine))), group=_waiting)
    return [json.loads(p[: int(n)].numpy().tobytes()) for p, n in zip(parts, sizes, strict=True)]


def joined_rank() -> RankInfo:
    """Rank among the joined processes; 0 of 1 where none are joined."""
    return RankInfo(distributed.get_rank(), num_processes()) if num_processes() > 1 else RankInfo()


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


def pick_of_all(values: Tensor, lengths: Tensor, picks: Tensor) -> Tensor:
    """Pick values of the rows of all processes, as one process with all rows would.

    Row i of process r is row r + i · world of the batch, as `Stage.batch` deals them.

    Args:
        values: (L, D) this process's, its rows laid end to end.
        lengths: (B,) int64 values of each row; B is the same on every process.
        picks: (P,) int64 places in the values of all rows in the batch's order, equal everywhere.

    Returns:
        (P, D), the same on every process.
    """
    world = num_processes()
    if world == 1:
        return values[picks]
    rank = distributed.get_rank()
    parts = [torch.empty_like(lengths) for _ in range(world)]
    distributed.all_gather(parts, lengths.contiguous())
    ends = torch.stack(parts, 1).flatten().cumsum(0)  # (B · world,) in the batch's order
    row = torch.searchsorted(ends, picks, right=True)  # (P,)
    place = picks - (ends[row] - torch.stack(parts, 1).flatten()[row])  # within its row
    ours = row % world == rank
    own = row[ours] // world
    out = torch.zeros(len(picks), values.shape[1], dtype=values.dtype, device=values.device)
    out[ours] = values[(lengths.cumsum(0) - lengths)[own] + place[ours]]
    distributed.all_reduce(out)  # every row is of one process: nothing is rounded
    return out


def size_of_all(count: int, device: torch.device) -> int:
    """The sum of a whole number over all processes."""
    if num_processes() == 1:
        return count
    total = torch.tensor(count, device=device)
    distributed.all_reduce(total)
    return int(total)
