"""Levels and assignments: how many tokens each temporal block of a clip gets.

A level is a permitted token count, an assignment one level per block, the candidates all m^T
assignments of a clip (method: K = {32, 64, 128, 256, 512}, T = 4, 625 candidates).

Shape letters: B batch, T blocks, m levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evatok.core.errors import EvatokError


@dataclass(frozen=True)
class Levels:
    """The permitted token counts of one block, ascending."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)) or self.values[0] < 1:
            raise EvatokError(f"levels {self.values} must be distinct, ascending and positive")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def tensor(self) -> Tensor:
        """(m,) int64, the token counts."""
        return torch.tensor(self.values, dtype=torch.int64)

    def num_candidates(self, num_blocks: int) -> int:
        """m^T."""
        return len(self.values) ** num_blocks

    def candidates(self, num_blocks: int) -> Tensor:
        """Every assignment of T blocks.

        Returns:
            (m^T, T) int64 token counts, in lexicographic order: the first block varies slowest.
        """
        return torch.cartesian_prod(*[self.tensor] * num_blocks).reshape(-1, num_blocks)

    def ranks(self, assignment: Tensor) -> Tensor:
        """Position of each token count among the levels.

        Args:
            assignment: (..., T) int64 token counts.

        Returns:
            (..., T) int64 in [0, m).

        Raises:
            EvatokError: a count that is not a level.
        """
        levels = self.tensor.to(assignment.device)
        ranks = torch.searchsorted(levels, assignment.contiguous()).clamp_(max=len(levels) - 1)
        if not torch.equal(levels[ranks], assignment):
            wrong = sorted(set(assignment.flatten().tolist()) - set(self.values))
            raise EvatokError(f"{wrong} are not levels; choose each from {list(self.values)}")
        return ranks

    def index(self, assignment: Tensor) -> Tensor:
        """Row of each assignment in `candidates(T)`.

        Args:
            assignment: (..., T) int64 token counts.

        Returns:
            (...) int64 in [0, m^T).
        """
        ranks = self.ranks(assignment)
        place = len(self.values) ** torch.arange(ranks.shape[-1] - 1, -1, -1, device=ranks.device)
        return (ranks * place).sum(-1)

    def with_prefix(self, num_blocks: int, prefix: Sequence[int] | Tensor) -> Tensor:
        """Mask of the candidates that begin with the given levels.

        Args:
            num_blocks: T.
            prefix: (..., p) token counts, p at most T.

        Returns:
            (..., m^T) bool.
        """
        start = torch.as_tensor(prefix, dtype=torch.int64)
        length = start.shape[-1]
        if length > num_blocks:
            raise EvatokError(f"prefix {start.tolist()} is longer than the {num_blocks} blocks")
        if start.numel():
            self.ranks(start)
        candidates = self.candidates(num_blocks).to(start.device)[:, :length]
        return (candidates == start[..., None, :]).all(-1)


def grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """The 2D grid of `tokens` cells from which a block's queries are pooled.

    Halves the longer side in turn, as 512 → 32 × 16, 256 → 16 × 16, 128 → 16 × 8, 32 → 8 × 4 on a
    16 × 16 block; a count that is no power-of-two fraction takes the most square factorisation.

    Args:
        tokens: k, the cells wanted.
        height: embeddings of a block vertically.
        width: embeddings of a block horizontally.

    Returns:
        (rows, columns) with rows · columns = k and the aspect nearest to the block's, rows first.
    """
    shapes = [(tokens // c, c) for c in range(1, tokens + 1) if tokens % c == 0]
    return min(shapes, key=lambda s: (abs(math.log(s[0] / s[1] * width / height)), -s[0]))


def parse_assignment(text: str, levels: Levels, num_blocks: int) -> tuple[int, ...]:
    """Read "32,16,8,8" (one level per block) or "32" (the same for all).

    Raises:
        EvatokError: not numbers, not levels, or not T of them.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise EvatokError(f"assignment {text!r} is not a comma-separated list of numbers") from None
    if len(counts) == 1:
        counts = counts * num_blocks
    if len(counts) != num_blocks:
        raise EvatokError(f"assignment {text!r} has {len(counts)} levels; a clip has {num_blocks}")
    levels.ranks(torch.tensor(counts))
    return tuple(counts)
