"""Causal attention over packed sequences: one entry point, several backends.

Sequences of any length lie end to end, without padding; `cu_seqlens` says where each begins, and
no token sees another sequence. Which backend runs is decided by device and by what imports, is
logged once, and can be overridden for tests and comparisons.

Shape letters: L packed tokens, N sequences, S tokens of one sequence, Hd heads, Dh head width.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.compute import optional_kernels as kernels
from evatok.core.errors import EvatokError

log = logging.getLogger(__name__)

# Up to this length, scores written out and multiplied beat the fused kernel on a CPU: forward and
# backward of 4 heads × 96 tokens in 0.5 ms instead of 1.3 (bfloat16), and the fused kernel falls to
# a third of its speed under float32 matmul precision "medium". At 1 024 tokens it is the other way.
MATMUL_TOKENS = 512


@dataclass(frozen=True)
class Sequences:
    """Bounds of packed sequences, on the device for kernels and on the host for loops.

    Attributes:
        cu_seqlens: (N + 1,) int32, starts with 0, ends with L.
        lengths: N counts.
    """

    cu_seqlens: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def from_cu_seqlens(cu_seqlens: Tensor, device: torch.device | None = None) -> Sequences:
        """Read the lengths once for all layers, from where they are, before they move."""
        return Sequences(cu_seqlens.to(device), tuple(cu_seqlens.diff().tolist()))

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    def positions(self) -> Tensor:
        """(L,) int64, place of each token in its own sequence."""
        device = self.cu_seqlens.device
        starts = self.cu_seqlens[:-1].repeat_interleave(
            torch.tensor(self.lengths, device=device), output_size=sum(self.lengths)
        )
        return torch.arange(sum(self.lengths), device=device) - starts


def attend(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, backend: str | None = None
) -> Tensor:
    """Causal attention of packed sequences.

    Args:
        q: (L, Hd, Dh) float, any dtype that the backend takes.
        k: (L, Hd, Dh), likewise.
        v: (L, Hd, Dh), likewise.
        sequences: where each sequence begins.
        backend: a name out of `BACKENDS`; by device and installed packages if None.

    Returns:
        (L, Hd, Dh) of the dtype of v.

    Raises:
        EvatokError: no such backend.
    """
    name = backend or default_backend(q.device.type, q.dtype)
    if name not in BACKENDS:
        raise EvatokError(f"attention backend {name!r} is not one of {sorted(BACKENDS)}")
    return BACKENDS[name](q, k, v, sequences)


@lru_cache
def default_backend(device: str, dtype: torch.dtype) -> str:
    """The fastest backend that runs on a kind of device ("cpu", "cuda", …) and float type."""
    name = kernels.installed(device, dtype) or "loop"
    log.info("attention on %s in %s: %s", device, dtype, name)
    return name


@contextmanager
def highest_matmul_precision() -> Iterator[None]:
    """Inside, float32 products take PyTorch's default path.

    "medium" speeds up large linear layers on some CPUs but makes the many tiny products of a
    decode step up to 20 times slower. Switching costs under a microsecond.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ------------------------------------------------------------------------------------------------
# everywhere


def _naive(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """The definition, with one dense (L, L) mask: quadratic in the whole batch, for comparison."""
    length = len(q)
    lengths = torch.tensor(sequences.lengths, device=q.device)
    owner = torch.arange(len(lengths), device=q.device).repeat_interleave(lengths)
    place = torch.arange(length, device=q.device)
    visible = (owner[:, None] == owner) & (place[:, None] >= place)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.float()).to(v.dtype)


@cache
def _future(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(S, S) for the longest S in use, −∞ where a key lies after the query, else 0."""
    with torch.inference_mode(False):  # the same tensor serves training later
        shape = (MATMUL_TOKENS, MATMUL_TOKENS)
        return torch.full(shape, -math.inf, dtype=dtype, device=device).triu(1)


def _loop(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """One call per sequence."""
    out, lengths = [], sequences.lengths
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (Hd, L, Dh)
    parts = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True)
    for length, (a, b, c) in zip(lengths, parts, strict=True):
        if length <= MATMUL_TOKENS and a.device.type == "cpu":
            mask = _future(a.dtype, a.device)[:length, :length]
            scores = torch.baddbmm(mask, a, b.transpose(1, 2), alpha=a.shape[-1] ** -0.5)
            out.append(torch.bmm(scores.softmax(-1).to(c.dtype), c))
        else:
            fused = F.scaled_dot_product_attention(a[None], b[None], c[None], is_causal=True)
            out.append(fused[0])
    return torch.cat(out, 1).transpose(0, 1)


# ------------------------------------------------------------------------------------------------
# optional kernels


def _flash(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """flash-attn's variable-length kernel."""
    kernel, cu, longest = kernels.required("flash"), sequences.cu_seqlens, sequences.max_seqlen
    return kernel(q, k, v, cu, cu, longest, longest, causal=True)


def _varlen(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """PyTorch's own variable-length kernel."""
    kernel, cu, longest = kernels.required("varlen"), sequences.cu_seqlens, sequences.max_seqlen
    return kernel(q, k, v, cu, cu, longest, longest, window_size=(-1, 0))


def _xformers(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """xformers with a block-diagonal causal mask."""
    kernel = kernels.required("xformers")
    masks = importlib.import_module("xformers.ops.fmha.attn_bias")
    bias = masks.BlockDiagonalCausalMask.from_seqlens(list(sequences.lengths))
    return kernel(q[None], k[None], v[None], attn_bias=bias)[0]


def _flex(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """FlexAttention; on a CPU it has no backward."""
    length, device = len(q), q.device
    lengths = torch.tensor([*sequences.lengths, kernels.flex_rows(length) - length], device=device)
    owner = torch.arange(len(lengths), device=device).repeat_interleave(lengths)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (owner[query] == owner[key]) & (query >= key)

    return kernels.flex(q, k, v, visible)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Sequences], Tensor]] = {
    "naive": _naive,
    "loop": _loop,
    "flex": _flex,
    "flash": _flash,
    "varlen": _varlen,
    "xformers": _xformers,
}
