"""The search of the codebook in training on a CPU as compiled C code (`quantizer.c`).

PyTorch writes the scores of all tokens with all codes, their softmax and its logarithm, and reads
them again for the gradient. Here a token's scores stay in the processor's cache and are computed
again for the gradient.

Shape letters: L packed tokens, D code width, K codebook size.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.c_kernels import NoCompiler, loaded

SOURCE = Path(__file__).with_name("quantizer.c")
PART = 128  # tokens that are summed by one thread, as in the C file
LANES = 16  # codes at a time


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "codes", "width")),
        ("scale", ctypes.c_float),
    ]


@lru_cache
def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    found = loaded(SOURCE)
    found.search.restype = found.search_backward.restype = None
    found.search.argtypes = [ctypes.c_void_p] * 7
    found.search_backward.argtypes = [
        *[ctypes.c_void_p] * 6,
        ctypes.c_float,
        *[ctypes.c_void_p] * 2,
    ]
    return found


@lru_cache
def _has_compiler() -> bool:
    try:
        library()
    except NoCompiler as error:
        logging.getLogger(__name__).warning("the codebook is searched by PyTorch, since %s", error)
        return False
    return True


def is_for(codebook: Tensor) -> bool:
    """Whether the search of a codebook (K, D) in training is best done by this code."""
    return codebook.device.type == "cpu" and len(codebook) % LANES == 0 and _has_compiler()


class _Search(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, book: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        unit, columns = unit.contiguous(), book.T.contiguous()
        sizes = _Sizes(len(unit), *book.shape, 2 / temperature / log(2))
        ids = torch.empty(len(unit), dtype=torch.int64)
        entropies, exponents = torch.empty(2, len(unit))
        use = torch.empty(-(-len(unit) // PART), len(book))
        arrays = (x.data_ptr() for x in (unit, columns, ids, entropies, exponents, use))
        library().search(ctypes.addressof(sizes), *arrays)
        ctx.save_for_backward(unit, columns, entropies, exponents)
        ctx.sizes = sizes
        ctx.mark_non_differentiable(ids)
        return ids, entropies.sum(), use.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, columns, entropies, exponents = ctx.saved_tensors
        _, of_entropy, of_use = gradients
        to_unit = torch.empty_like(unit)
        to_book = torch.empty(-(-len(unit) // PART), *columns.shape)
        inputs = (unit, columns, entropies, exponents, of_use.contiguous())
        arrays = [x.data_ptr() for x in (*inputs, to_unit, to_book)]
        library().search_backward(
            ctypes.addressof(ctx.sizes), *arrays[:5], float(of_entropy), *arrays[5:]
        )
        return to_unit, to_book.sum(0).T, None


def search(unit: Tensor, book: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest code of each token, and how sharply the tokens are assigned.

    Args:
        unit: (L, D) float32 of unit length, on the CPU.
        book: (K, D) float32 of unit length; `is_for` holds.
        temperature: τ of the soft assignment softmax(−squared distance / τ).

    Returns:
        Ids (L,) int64; the sum over tokens of the entropies in nats; the sum (K,) over tokens of
        the soft assignments. The last two have gradients.
    """
    found = _Search.apply(unit, book, temperature)
    assert isinstance(found, tuple)
    return found
