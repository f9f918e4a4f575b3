"""Memory layout of the blocks and tokens of a batch with free assignments.

Clips are sorted so that equal assignments are neighbours (`ClipGroups`); their 1D tokens are packed
end to end. From there two rearrangements serve computations of few calls: blocks by their level
(`BlockLevels`: one product per level, whatever the assignments are) and clips padded to the longest
(`Side`: one attention for the whole batch). Both are gathers whose gradient is a gather too.

Shape letters: B batch, T blocks, m levels, L packed tokens, S tokens of the longest clip,
N 3D positions of a block, D width, Hd heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Reordered(torch.autograd.Function):
    """Rows in another order; the gradient is the gather with the inverse, no scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0][inverse], None, None


def reordered(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """`x[order]` of a permutation (n,) and its inverse; x is (n, ...)."""
    return _Reordered.apply(x, order, inverse)


class _Padded(torch.autograd.Function):
    """Packed rows (L, ...) → (B, S, ...); what fills up is the first row and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x[places]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1)[rows], None, None


class _Packed(torch.autograd.Function):
    """The inverse of `_Padded`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, rows: Tensor, is_token: Tensor) -> Tensor:
        ctx.save_for_backward(places, is_token)
        return x.flatten(0, 1)[rows]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        places, is_token = ctx.saved_tensors
        padded = gradients[0][places]
        return padded * is_token[..., None, None].to(padded.dtype), None, None, None


class Side(NamedTuple):
    """Queries or keys of a batch as rows of equal length: 1D tokens padded, or the 3D grid.

    Attributes:
        blocks: (B, S) int64, block of each place; T where nothing is. (1, T · N) for the grid.
        places: (B, S) int64, the packed row at each place; 0 where nothing is. None for the grid.
        rows: (L,) int64, the place of each packed row, counted through. None for the grid.
        is_token: (B, S) bool, whether a place has a row. None for the grid.
    """

    blocks: Tensor
    places: Tensor | None = None
    rows: Tensor | None = None
    is_token: Tensor | None = None

    @staticmethod
    def of_grid(num_blocks: int, cells: int, device: torch.device) -> Side:
        """All T · N positions of every clip."""
        return Side(torch.arange(num_blocks, device=device).repeat_interleave(cells)[None])

    @staticmethod
    def of_tokens(counts: Tensor) -> Side:
        """1D tokens of clips with (B, T) int64 tokens a block, on the device of `counts`."""
        ends = counts.cumsum(1)  # (B, T)
        totals = ends[:, -1]
        place = torch.arange(int(totals.max()), device=counts.device)
        is_token = place < totals[:, None]
        starts = totals.cumsum(0) - totals
        return Side(
            blocks=(place[None, :, None] >= ends[:, None]).sum(-1),
            places=torch.where(is_token, starts[:, None] + place, 0),
            rows=is_token.flatten().nonzero().flatten(),
            is_token=is_token,
        )

    def padded(self, x: Tensor) -> Tensor:
        """(rows, Hd, Dh) → (B, Hd, S, Dh)."""
        if self.places is None:
            return x.unflatten(0, (-1, self.blocks.shape[1])).transpose(1, 2)
        return _Padded.apply(x, self.places, self.rows).transpose(1, 2)

    def packed(self, x: Tensor) -> Tensor:
        """The inverse of `padded`."""
        x = x.transpose(1, 2)
        if self.places is None:
            return x.flatten(0, 1)
        return _Packed.apply(x, self.places, self.rows, self.is_token)


class BlockEnds(NamedTuple):
    """Queries or keys of a batch as packed rows, nothing padded.

    Attributes:
        ends: (B, T) int64, the row at which each block ends, counted through the batch.
    """

    ends: Tensor

    @staticmethod
    def from_counts(counts: Tensor) -> BlockEnds:
        """Of clips with (B, T) int64 rows a block."""
        return BlockEnds(counts.flatten().cumsum(0).view(counts.shape))


@dataclass(frozen=True)
class BlockLevels:
    """The blocks of a batch sorted by level, and their tokens likewise.

    Attributes:
        ranks: levels that occur, ascending, as positions among the levels.
        sizes: blocks with each of them.
        blocks: (B · T,) int64, the block of the batch at each sorted place; and its inverse.
        rows: (L,) int64, the packed row at each place of the tokens sorted by level; its inverse.
        level_rows: (L,) int64 per packed row: its row in a table of all tokens of all levels of
            all blocks, (T, sum of the levels).
    """

    ranks: tuple[int, ...]
    sizes: tuple[int, ...]
    blocks: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor]
    level_rows: Tensor

    @staticmethod
    def from_ranks(ranks: Tensor, levels: Sequence[int], device: torch.device) -> BlockLevels:
        """Sort blocks with (B, T) int64 ranks, on the CPU, of clips that are packed in order."""
        num_blocks = ranks.shape[1]
        flat = ranks.flatten()
        values = torch.tensor(levels)
        counts = values[flat]  # (B · T,) tokens
        starts = counts.cumsum(0) - counts
        order = torch.argsort(flat, stable=True)
        found, sizes = torch.unique_consecutive(flat[order], return_counts=True)
        within = _within(counts)
        rows = starts[order].repeat_interleave(counts[order]) + _within(counts[order])
        first = values.cumsum(0) - values
        block = torch.arange(len(flat)) % num_blocks
        table = (block * int(values.sum()) + first[flat]).repeat_interleave(counts) + within
        pairs = [(x.to(device), torch.argsort(x).to(device)) for x in (order, rows)]
        return BlockLevels(
            tuple(found.tolist()), tuple(sizes.tolist()), pairs[0], pairs[1], table.to(device)
        )


def _within(counts: Tensor) -> Tensor:
    """0, 1, … up to each count, one after the other: (sum of the counts,) int64."""
    ends = counts.cumsum(0)
    return torch.arange(int(ends[-1])) - (ends - counts).repeat_interleave(counts)
