"""Plain functions with the documented signatures of libraries of attention, in their place."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from evatok.core.compute import optional_kernels as kernels


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """What flash-attn documents, in plain words: (total, heads, dim), int32 bounds, causal flag."""
    for bounds, rows, longest in ((cu_seqlens_q, q, max_seqlen_q), (cu_seqlens_k, k, max_seqlen_k)):
        assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(rows)
        assert isinstance(longest, int) and longest >= int(bounds.diff().max())
    assert len(cu_seqlens_q) == len(cu_seqlens_k) and len(k) == len(v)
    assert dropout_p == 0 and softmax_scale is None
    out = []
    for i in range(len(cu_seqlens_q) - 1):
        a = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]
        b, c = (x[cu_seqlens_k[i] : cu_seqlens_k[i + 1]] for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", a, b) / math.sqrt(q.shape[-1])
        if causal:
            assert len(a) == len(b)
            scores = scores.masked_fill(torch.ones(len(a), len(b)).triu(1).bool(), -math.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    return torch.cat(out)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """torch.nn.attention.varlen: (−1, −1) is a window over all keys, (−1, 0) is causal."""
    assert window_size in ((-1, -1), (-1, 0))
    is_causal = window_size == (-1, 0)
    return flash_attn_varlen_func(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal=is_causal
    )


class BlockDiagonalMask:
    """xformers: blocks on the diagonal, of queries by keys."""

    causal = False

    def __init__(self, queries: list[int], keys: list[int]) -> None:
        self.bounds = [torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (queries, keys)]
        self.longest = max(queries), max(keys)

    @classmethod
    def from_seqlens(
        cls, q_seqlen: list[int], kv_seqlen: list[int] | None = None
    ) -> BlockDiagonalMask:
        """Blocks of these lengths."""
        keys = q_seqlen if kv_seqlen is None else kv_seqlen
        assert isinstance(q_seqlen, list) and len(q_seqlen) == len(keys)
        assert all(type(length) is int for length in (*q_seqlen, *keys))
        return cls(q_seqlen, keys)


class BlockDiagonalCausalMask(BlockDiagonalMask):
    """xformers: each block causal."""

    causal = True


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: BlockDiagonalMask
) -> Tensor:
    """xformers: one batch of all rows, (1, total, heads, dim)."""
    assert query.ndim == 4 and len(query) == len(key) == 1
    (queries, keys), (most_q, most_k) = attn_bias.bounds, attn_bias.longest
    return flash_attn_varlen_func(
        query[0], key[0], value[0], queries, keys, most_q, most_k, causal=attn_bias.causal
    )[None]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these be found as the libraries until a test ends."""
    masks = {mask.__name__: mask for mask in (BlockDiagonalMask, BlockDiagonalCausalMask)}
    modules = {
        "flash_attn": {"flash_attn_varlen_func": flash_attn_varlen_func},
        "torch.nn.attention.varlen": {"varlen_attn": varlen_attn},
        "xformers": {"ops": SimpleNamespace()},
        "xformers.ops": {"memory_efficient_attention": memory_efficient_attention},
        "xformers.ops.fmha": {},
        "xformers.ops.fmha.attn_bias": masks,
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(kernels, "optional_function", kernels.optional_function.__wrapped__)
