"""Block-causal attention of packed clips in bfloat16 as compiled C code (`attention.c`).

What trains on a CPU spends more time around its attention than in it: padding, masking, a float32
softmax and copies for products. Here a clip's head is computed in one go, forward and backward, and
what a query does not see is left out.

Shape letters: B batch, T blocks, Hd heads, Dh head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.attention.batch_layout import BlockEnds
from tokenizer.cpu.tiles import with_tiles

SOURCE = Path(__file__).with_name("attention.c")


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("clips", "blocks", "heads", "width")),
        *((name, ctypes.c_int64) for name in ("queries", "q_stride", "k_stride", "v_stride")),
        *((name, ctypes.c_void_p) for name in ("query_ends", "key_ends")),
        ("scale", ctypes.c_float),
    ]


@lru_cache
def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    found = with_tiles(SOURCE)
    found.attention.restype = found.attention_backward.restype = None
    found.attention.argtypes = [ctypes.c_void_p] * 6
    found.attention_backward.argtypes = [ctypes.c_void_p] * 10
    return found


def _shape(q: Tensor, k: Tensor, v: Tensor, queries: BlockEnds, keys: BlockEnds) -> _Shape:
    for x in (q, k, v):
        assert x.dtype == torch.bfloat16 and x.stride()[1:] == (x.shape[2], 1)
    return _Shape(
        *queries.ends.shape, *q.shape[1:], len(q), q.stride(0), k.stride(0), v.stride(0),
        queries.ends.data_ptr(), keys.ends.data_ptr(), q.shape[2] ** -0.5,
    )  # fmt: skip


def attention(
    q: Tensor, k: Tensor, v: Tensor, queries: BlockEnds, keys: BlockEnds
) -> tuple[Tensor, Tensor]:
    """Block-causal attention of the whole batch, without a graph of gradients.

    Args:
        q: (rows, Hd, Dh) bfloat16, packed, on the CPU; a row's numbers are next to each other.
        k: (rows, Hd, Dh) bfloat16, likewise.
        v: (rows, Hd, Dh) bfloat16, likewise.
        queries: how the rows of q lie in the clips.
        keys: likewise.

    Returns:
        The mixed values (rows of q, Hd, Dh) bfloat16, and what `attention_backward` needs beside
        them, (Hd, rows of q) float32.
    """
    out, exponents = q.new_empty(q.shape), q.new_empty(q.shape[1::-1], dtype=torch.float32)
    shape = _shape(q, k, v, queries, keys)
    arrays = (x.data_ptr() for x in (q, k, v, out, exponents))
    library().attention(ctypes.addressof(shape), *arrays)
    return out, exponents


def attention_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    queries: BlockEnds,
    keys: BlockEnds,
    to: Sequence[Tensor],
) -> None:
    """Write the gradients of q, k and v.

    Args:
        gradient: (rows of q, Hd, Dh) bfloat16, of the mixed values.
        inputs: q, k and v.
        outputs: what `attention` returned.
        queries: how the rows of q lie in the clips.
        keys: likewise.
        to: where the gradients go; they lie in memory as q, k and v do.
    """
    assert [x.stride() for x in inputs] == [x.stride() for x in to]
    q, k, v = inputs
    shape = _shape(q, k, v, queries, keys)
    tensors = (*inputs, *outputs, gradient.contiguous(), *to)
    arrays = [x.data_ptr() for x in tensors]
    library().attention_backward(ctypes.addressof(shape), *arrays)
