"""Tokens of a batch of clips: ids packed without padding, and how many each block got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError


@dataclass(frozen=True)
class Tokens:
    """Tokens of B clips, packed clip by clip, block by block.

    Attributes:
        ids: (L,) int64 in [0, K).
        assignment: (B, T) int64, tokens per block; it adds up to L.
    """

    ids: Tensor
    assignment: Tensor

    def __post_init__(self) -> None:
        for name, part in (("ids", self.ids), ("assignment", self.assignment)):
            if not isinstance(part, Tensor) or part.dtype not in (torch.int64, torch.int32):
                kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
                raise EvatokError(f"{name}: give a tensor of int64, not {kind}")
        if self.assignment.ndim != 2 or int(self.assignment.sum()) != len(self.ids):
            raise EvatokError(
                f"{len(self.ids)} ids do not fit assignments {tuple(self.assignment.shape)} "
                f"that add up to {int(self.assignment.sum())}"
            )

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, tokens per clip."""
        return self.assignment.sum(1)

    @property
    def cu_seqlens(self) -> Tensor:
        """(B + 1,) int32, where each clip begins; the last entry is L."""
        return F.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32)

    def blocks(self) -> list[list[Tensor]]:
        """Ids of each block of each clip: B lists of T tensors (k,)."""
        parts = iter(self.ids.split(self.assignment.flatten().tolist()))
        batch, num_blocks = self.assignment.shape
        return [[next(parts) for _ in range(num_blocks)] for _ in range(batch)]

    def to(self, device: torch.device | str) -> Tokens:
        """The same on a device."""
        return Tokens(self.ids.to(device), self.assignment.to(device))

    @staticmethod
    def from_blocks(blocks: Sequence[Sequence[Tensor]]) -> Tokens:
        """The inverse of `blocks`; every clip must have the same number of blocks, at least 1."""
        counts = [[len(block) for block in clip] for clip in blocks]
        if not counts or len({len(row) for row in counts}) != 1 or not counts[0]:
            raise EvatokError("clips must be at least one and have equally many blocks")
        ids = torch.cat([block for clip in blocks for block in clip])
        return Tokens(ids, torch.tensor(counts, device=ids.device))

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """Batches one after the other."""
        return Tokens(torch.cat([p.ids for p in parts]), torch.cat([p.assignment for p in parts]))
