"""Block-causal attention of a whole batch as one call over sequences of variable length.

A query of block t of a clip sees the keys of its blocks ≤ t, so a batch is B · T sequences: the
queries of one block, and the keys of its prefix. Prefixes of one clip overlap; kernels for packed
sequences want each sequence's keys in one piece, so keys and values are gathered prefix by prefix:
(T + 1) / 2 times the rows where blocks are equal, little beside the attention itself. A page table
would spare the copy, but the kernels that take one have no backward.

Shape letters: B batch, T blocks, Hd heads, Dh head width.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.compute import optional_kernels as kernels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockSequences:
    """Queries and keys of every block of packed clips.

    Attributes:
        queries: (B, T) int64 on the CPU, queries of each block.
        keys: (B, T) int64 on the CPU, keys of each block.
        device: where the attention runs.
    """

    queries: Tensor
    keys: Tensor
    device: torch.device

    @cached_property
    def prefixes(self) -> Tensor:
        """(B · T,) int64 on the CPU, keys that each block's queries see."""
        return self.keys.cumsum(1).flatten()

    @cached_property
    def key_rows(self) -> Tensor:
        """Packed row of every key of every prefix, one prefix after the other, int64."""
        totals = self.keys.sum(1)
        starts = (totals.cumsum(0) - totals).repeat_interleave(self.keys.shape[1])
        ends = self.prefixes.cumsum(0)
        shift = (starts - (ends - self.prefixes)).repeat_interleave(self.prefixes)
        return (torch.arange(int(ends[-1])) + shift).to(self.device)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Bounds of sequences: two (B · T + 1,) int32, of queries and of gathered keys."""
        queries, keys = (
            F.pad(x.cumsum(0), (1, 0)) for x in (self.queries.flatten(), self.prefixes)
        )
        return queries.to(self.device, torch.int32), keys.to(self.device, torch.int32)

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Most queries, and most gathered keys, of a sequence."""
        return int(self.queries.max()), int(self.prefixes.max())

    def owners(self, counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Clip and block, each (total,) int64, of rows with (B, T) counts; −1 beyond them."""
        clips, blocks = counts.shape
        which = torch.arange(clips * blocks).repeat_interleave(counts.flatten())
        pad = (0, total - len(which))
        pairs = (which // blocks, which % blocks)
        clip, block = (F.pad(x, pad, value=-1).to(self.device) for x in pairs)
        return clip, block


def _visible(sequences: BlockSequences, queries: int, keys: int) -> Callable[..., Tensor]:
    """Predicate (batch, head, query, key) over so many rows."""
    query_clip, query_block = sequences.owners(sequences.queries, queries)
    key_clip, key_block = sequences.owners(sequences.keys, keys)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query_clip[query] == key_clip[key]) & (query_block[query] >= key_block[key])

    return visible


def _naive(q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    """The definition, with one dense mask over the batch, for comparison."""
    rows = torch.arange(len(q), device=q.device), torch.arange(len(k), device=q.device)
    none = torch.zeros((), dtype=torch.int64)
    visible = _visible(sequences, len(q), len(k))(none, none, rows[0][:, None], rows[1])
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.float()).to(v.dtype)


def _packed(name: str, q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    """flash-attn's kernel, and PyTorch's own, which takes the same arguments."""
    rows = sequences.key_rows
    return kernels.required(name)(q, k[rows], v[rows], *sequences.bounds, *sequences.longest)


def _flash(q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    return _packed("flash", q, k, v, sequences)


def _varlen(q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    return _packed("varlen", q, k, v, sequences)


def _xformers(q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    """xformers with a block-diagonal mask."""
    kernel, rows = kernels.required("xformers"), sequences.key_rows
    masks = importlib.import_module("xformers.ops.fmha.attn_bias")
    lengths = sequences.queries.flatten().tolist(), sequences.prefixes.tolist()
    bias = masks.BlockDiagonalMask.from_seqlens(*lengths)
    return kernel(q[None], k[rows][None], v[rows][None], attn_bias=bias)[0]


def _flex(q: Tensor, k: Tensor, v: Tensor, sequences: BlockSequences) -> Tensor:
    """FlexAttention over the packed keys themselves; on a CPU it has no backward."""
    sizes = kernels.flex_rows(len(q)), kernels.flex_rows(len(k))
    return kernels.flex(q, k, v, _visible(sequences, *sizes))


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, BlockSequences], Tensor]] = {
    "naive": _naive,
    "flex": _flex,
    "flash": _flash,
    "varlen": _varlen,
    "xformers": _xformers,
}


@lru_cache
def default_backend(device: str, dtype: torch.dtype) -> str:
    """The fastest way on a kind of device ("cpu", "cuda", …) and float type.

    One of `BACKENDS`, or what `ClipGroups` does itself: "groups" (one call for each group of
    equally assigned clips: no padding, best on a CPU) or "padded" (one call).
    """
    name = "groups" if device == "cpu" else kernels.installed(device, dtype) or "padded"
    log.info("the tokenizer's attention on %s in %s: %s", device, dtype, name)
    return name
