"""Batches in the order of the steps, made ahead of time where workers are configured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.stage import Stage


class _Steps(Dataset):
    """Batch of step i as item i."""

    def __init__(self, stage: Stage, rank: int, world: int) -> None:
        self.stage, self.rank, self.world = stage, rank, world

    def __getitem__(self, step: int) -> Any:
        return self.stage.batch(step, self.rank, self.world)


def batches(
    stage: Stage, steps: range, rank: int, world: int, workers: int, pinned: bool
) -> Iterator[Any]:
    """The batches of some steps for process `rank` of `world`.

    Args:
        stage: makes them.
        steps: in this order.
        rank: of this process.
        world: number of processes.
        workers: processes that make them ahead of time; 0 = none, made when asked for.
        pinned: into memory from which a device copies faster.
    """
    return iter(
        DataLoader(
            _Steps(stage, rank, world),
            batch_size=None,
            sampler=steps,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pinned,
            # a generator of its own: otherwise it takes a number from the global one
            generator=torch.Generator().manual_seed(0),
        )
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch on a device: tensors in tuples, lists or dicts, or an object with `to`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
