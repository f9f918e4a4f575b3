"""Block-causal attention of packed clips in bfloat16 as compiled C code (`attention.c`).

What trains on a CPU spends more time around its attention than in it: padding, masking, a float32
softmax and copies for products. Here a clip's head is computed in one go, forward and backward, and
what a query does not see is left out. Made for processors with AMX; elsewhere PyTorch's products
serve as well, and `is_fast_on` says so.

Shape letters: B batch, T blocks, Hd heads, Dh head width.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer.batch_layout import BlockEnds
from training.c_kernels import OPTIONS, NoCompiler, loaded

log = logging.getLogger(__name__)

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
    found = loaded(SOURCE, OPTIONS)
    if found.ask_for_tiles() < 0:
        found = loaded(SOURCE, (*OPTIONS, "-DNO_TILES"))
    found.attention.restype = found.attention_backward.restype = None
    found.attention.argtypes = [ctypes.c_void_p] * 6
    found.attention_backward.argtypes = [ctypes.c_void_p] * 10
    return found


def is_fast_on(device: torch.device) -> bool:
    """Whether what autocast computes on a device is best attended to by this code."""
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and _has_tiles()


@lru_cache
def _has_tiles() -> bool:
    """Whether this code can be compiled here and the processor multiplies tiles (AMX)."""
    try:
        found = library().ask_for_tiles() > 0
    except NoCompiler as error:
        log.warning("the tokenizer's attention is PyTorch's, since %s", error)
        return False
    log.info("the tokenizer's attention is %s", "compiled C code" if found else "PyTorch's")
    return found


def _rows(x: Tensor) -> Tensor:
    """(rows, Hd, Dh) with a row's numbers next to each other."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _shape(q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor) -> _Shape:
    return _Shape(
        *query_ends.shape, *q.shape[1:], len(q), q.stride(0), k.stride(0), v.stride(0),
        query_ends.data_ptr(), key_ends.data_ptr(), q.shape[2] ** -0.5,
    )  # fmt: skip


@torch.library.custom_op("evatok::block_attention", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor
) -> tuple[Tensor, Tensor]:
    """The values mixed (rows, Hd, Dh), and the logarithms of the softmax's sums (Hd, rows)."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, exponents = q.new_empty(q.shape), q.new_empty(q.shape[1::-1], dtype=torch.float32)
    shape = _shape(q, k, v, query_ends, key_ends)
    arrays = (x.data_ptr() for x in (q, k, v, out, exponents))
    library().attention(ctypes.addressof(shape), *arrays)
    return out, exponents


@torch.library.custom_op("evatok::block_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    exponents: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    q, k, v, gradient = _rows(q), _rows(k), _rows(v), gradient.contiguous()
    results = tuple(x.new_empty(x.shape) for x in (q, k, v))
    shape = _shape(q, k, v, query_ends, key_ends)
    arrays = (x.data_ptr() for x in (q, k, v, out, exponents, gradient, *results))
    library().attention_backward(ctypes.addressof(shape), *arrays)
    return results


@_forward.register_fake
def _(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, query_ends, key_ends = inputs
    ctx.save_for_backward(q, k, v, *output, query_ends, key_ends)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(gradient, *ctx.saved_tensors), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: BlockEnds, keys: BlockEnds
) -> Tensor:
    """Block-causal attention of the whole batch.

    Args:
        q: (rows, Hd, Dh) bfloat16, packed, on the CPU.
        k: (rows, Hd, Dh) bfloat16, likewise.
        v: (rows, Hd, Dh) bfloat16, likewise.
        queries: how the rows of q lie in the clips.
        keys: likewise.

    Returns:
        (rows of q, Hd, Dh) bfloat16.
    """
    return _forward(q, k, v, queries.ends, keys.ends)[0]
