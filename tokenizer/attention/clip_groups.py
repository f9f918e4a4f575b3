"""Temporal causality: which query may see which reference, and attention that obeys it.

A query of block t sees queries and references of blocks ≤ t (method section 2, point 7): a
block-lower-triangular mask. Clips of one batch may have different assignments; `ClipGroups` puts
clips with the same assignment next to each other, so that every group is a dense view of the
packed rows and nothing is ever padded.

Shape letters: B batch, T blocks, L packed tokens, Q queries, N keys, Hd heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels
from tokenizer.attention.backends import BACKENDS, BlockSequences, default_backend
from tokenizer.attention.batch_layout import BlockLevels, Side, reordered

# From this many scores on, one call per block (no mask, no score of the future) beats one masked
# call: 1.2–2.4 times at 128 × 128 pixels, 1.3 times at 64 × 64, measured on CPU.
SLICE_SCORES = 128 * 128
# Up to this many keys three plain steps beat the fused kernel on CPU: forward 1.2–3.6 times,
# backward 1.7–6 times, in float32 and bf16, measured at 16–256 queries.
SHORT_KEYS = 512


@lru_cache(maxsize=4096)
def block_causal_mask(
    query_lengths: tuple[int, ...],
    key_lengths: tuple[int, ...],
    device: torch.device | None = None,
) -> Tensor:
    """Mask of the block-causal attention.

    Args:
        query_lengths: T counts, the queries of each block.
        key_lengths: T counts, the keys of each block.
        device: where the mask is; the CPU if None.

    Returns:
        (Q, N) bool, true where the query may look. Cached for each device: do not write into it.
    """
    with torch.inference_mode(False):  # the same mask serves training later
        block = torch.arange(len(query_lengths))
        query_block = block.repeat_interleave(torch.tensor(query_lengths))
        key_block = block.repeat_interleave(torch.tensor(key_lengths))
        return (query_block[:, None] >= key_block[None, :]).to(device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        q: (B, Hd, Q, Dh).
        k: (B, Hd, N, Dh).
        v: (B, Hd, N, Dh).
        mask: (Q, N) bool, true where allowed; everything if None.

    Returns:
        (B, Hd, Q, Dh).
    """
    if q.device.type == "cpu" and k.shape[2] <= SHORT_KEYS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def block_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    slices: bool | None = None,
) -> Tensor:
    """Attention of equally assigned clips.

    Args:
        q: (B, Q, Hd, Dh).
        k: (B, N, Hd, Dh).
        v: (B, N, Hd, Dh).
        query_lengths: T counts that add up to Q.
        key_lengths: T counts that add up to N.
        slices: one unmasked call per block instead of one masked call; by size if None.

    Returns:
        (B, Q, Hd, Dh).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, Hd, Q, Dh)
    if slices is None:
        slices = q.shape[2] * k.shape[2] > SLICE_SCORES
    if len(query_lengths) == 1:
        return attend(q, k, v).transpose(1, 2)
    if not slices:
        mask = block_causal_mask(tuple(query_lengths), tuple(key_lengths), q.device)
        return attend(q, k, v, mask).transpose(1, 2)
    out, seen = [], 0
    for part, num_keys in zip(q.split(list(query_lengths), 2), key_lengths, strict=True):
        seen += num_keys
        out.append(attend(part, k[:, :, :seen], v[:, :, :seen]))
    return torch.cat(out, 2).transpose(1, 2)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, queries: Side, keys: Side) -> Tensor:
    """Block-causal attention of the whole batch in one masked call over padded rows.

    It makes the same few operations whatever the assignments are: what a compiled layer needs.

    Args:
        q: (rows, Hd, Dh) packed.
        k: (rows, Hd, Dh), likewise.
        v: (rows, Hd, Dh), likewise.
        queries: how the rows of q lie in the clips.
        keys: likewise.

    Returns:
        (rows of q, Hd, Dh).
    """
    q, k, v = queries.padded(q), keys.padded(k), keys.padded(v)  # (B, Hd, S, Dh)
    hidden = queries.blocks[:, None, :, None] < keys.blocks[:, None, None, :]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
    return queries.packed(weights @ v)


@lru_cache(maxsize=64)
def _grid(num_blocks: int, cells: int, device: torch.device) -> Side:
    with torch.inference_mode(False):  # the same tensor serves training later
        return Side.of_grid(num_blocks, cells, device)


@dataclass(frozen=True)
class ClipGroups:
    """A batch sorted so that clips with the same assignment are neighbours.

    Attributes:
        order: (B,) int64, the clip of the batch at each sorted place.
        assignments: the distinct assignments, one tuple of T counts for each group.
        sizes: number of clips in each group.
        counts: (B, T) int64 on the CPU, the assignment of each sorted clip.
    """

    order: Tensor
    assignments: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    counts: Tensor
    _sequences: dict[str, BlockSequences] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_assignment(assignment: Tensor) -> ClipGroups:
        """Group the rows of a (B, T) assignment; the result is on its device."""
        distinct, inverse, counts = torch.unique(
            assignment, dim=0, return_inverse=True, return_counts=True
        )
        return ClipGroups(
            order=torch.argsort(inverse, stable=True),
            assignments=tuple(tuple(row) for row in distinct.tolist()),
            sizes=tuple(counts.tolist()),
            counts=distinct.repeat_interleave(counts, 0).cpu(),
        )

    @cached_property
    def back(self) -> Tensor:
        """(B,) int64, the sorted place of each clip of the batch."""
        return torch.argsort(self.order)

    def in_batch_order(self, rows: Tensor) -> Tensor:
        """3D rows (B · T · N, D) of sorted clips → (B, T · N, D) in the order of the batch."""
        return reordered(rows.unflatten(0, (len(self.order), -1)), self.back, self.order)

    @cached_property
    def tokens(self) -> Side:
        """The packed 1D tokens as padded rows."""
        return Side.of_tokens(self.counts.to(self.order.device))

    def grid(self, cells: int) -> Side:
        """The 3D positions, `cells` a block."""
        return _grid(self.counts.shape[1], cells, self.order.device)

    def by_level(self, levels: Levels) -> BlockLevels:
        """The blocks of the sorted clips, sorted by level."""
        return BlockLevels.from_ranks(levels.ranks(self.counts), levels.values, self.order.device)

    @property
    def num_rows(self) -> int:
        """L, packed tokens of the whole batch."""
        return sum(n * sum(a) for n, a in zip(self.sizes, self.assignments, strict=True))

    def sequences(self, grid_cells: int, kind: str) -> BlockSequences:
        """Every block's queries and the keys of its prefix; made once for each kind."""
        if kind not in self._sequences:
            cells = torch.full_like(self.counts, grid_cells)
            sides = [self.counts if side == "1d" else cells for side in kind.split("-")]
            self._sequences[kind] = BlockSequences(sides[0], sides[1], self.order.device)
        return self._sequences[kind]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid_cells: int,
        kind: str,
        backend: str | None = None,
    ) -> Tensor:
        """Block-causal attention over the packed batch.

        Args:
            q: (rows, Hd, Dh), packed 1D tokens or all 3D positions, clips in sorted order.
            k: (rows, Hd, Dh), likewise.
            v: (rows, Hd, Dh).
            grid_cells: 3D positions of one block.
            kind: "1d-1d", "1d-3d", "3d-1d" or "3d-3d": what queries and keys are.
            backend: one of `block_attention.BACKENDS`, "groups" or "padded"; by device, float type
                and installed packages if None.

        Returns:
            (rows of q, Hd, Dh).

        Raises:
            EvatokError: no such backend.
        """
        name = backend or default_backend(q.device.type, q.dtype)
        if name == "groups":
            return self._attend_by_group(q, k, v, grid_cells, kind)
        if name == "padded":
            sides = [self.tokens if s == "1d" else self.grid(grid_cells) for s in kind.split("-")]
            return padded_attention(q, k, v, sides[0], sides[1])
        if name not in BACKENDS:
            names = sorted([*BACKENDS, "groups", "padded"])
            raise EvatokError(f"attention backend {name!r} is not one of {names}")
        return BACKENDS[name](q, k, v, self.sequences(grid_cells, kind))

    def _attend_by_group(
        self, q: Tensor, k: Tensor, v: Tensor, grid_cells: int, kind: str
    ) -> Tensor:
        """One dense call, or one a block, for each group; nothing is padded."""
        query_is_1d, key_is_1d = kind[:2] == "1d", kind[3:] == "1d"
        num_blocks = len(self.assignments[0])
        cells = (grid_cells,) * num_blocks
        if not query_is_1d and not key_is_1d:  # the same mask for every clip: one call
            batch = sum(self.sizes)
            q, k, v = (x.unflatten(0, (batch, -1)) for x in (q, k, v))
            return block_causal_attention(q, k, v, cells, cells).flatten(0, 1)
        query_lengths = [a if query_is_1d else cells for a in self.assignments]
        key_lengths = [a if key_is_1d else cells for a in self.assignments]
        rows_q = [n * sum(a) for n, a in zip(self.sizes, query_lengths, strict=True)]
        rows_k = [n * sum(a) for n, a in zip(self.sizes, key_lengths, strict=True)]
        # split, not slices: the gradient of a split is one concatenation
        parts = zip(q.split(rows_q), k.split(rows_k), v.split(rows_k), strict=True)
        out = []
        for index, part in enumerate(parts):
            dense = [x.unflatten(0, (self.sizes[index], -1)) for x in part]
            result = block_causal_attention(
                dense[0], dense[1], dense[2], query_lengths[index], key_lengths[index]
            )
            out.append(result.flatten(0, 1))
        return torch.cat(out)

    def rows_in_batch_order(self) -> Tensor:
        """Index in the sorted packing of each packed row of the batch's own order.

        Returns:
            (L,) int64: `sorted_rows[rows_in_batch_order()]` is packed clip by clip as given.
        """
        totals = torch.tensor([sum(a) for a in self.assignments])
        lengths = totals.repeat_interleave(torch.tensor(self.sizes))  # of each sorted clip
        starts = lengths.cumsum(0) - lengths
        place = torch.argsort(self.order.cpu())  # sorted place of each clip of the batch
        lengths, starts = lengths[place], starts[place]
        ends = lengths.cumsum(0)
        within = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
        return (starts.repeat_interleave(lengths) + within).to(self.order.device)
