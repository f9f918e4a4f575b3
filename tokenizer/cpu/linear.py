"""Linear maps with what is around them, as compiled C code (`linear.c`): rows pass once.

Shape letters: L rows, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.cpu.tiles import with_tiles

SOURCE = Path(__file__).with_name("linear.c")
WHOLE = 32  # inputs and outputs are multiples of it

_POINTERS = (
    *("weight", "bias", "x", "x_half", "gain", "shift", "statistics", "out", "slope", "residual"),
    *("out_float", "gradient", "gradient_float", "x_gradient", "x_gradient_float"),
    *("weight_gradient", "bias_gradient", "gain_gradient", "shift_gradient"),
)


class _Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("epsilon", ctypes.c_float),
    ]


@lru_cache
def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    found = with_tiles(SOURCE)
    found.linear.restype = found.linear_backward.restype = None
    found.linear.argtypes = found.linear_backward.argtypes = [ctypes.c_void_p]
    return found


class Linear(NamedTuple):
    """Weights of a map, and those of the layer norm before it.

    Attributes:
        weight: (O, I) float32.
        bias: (O,) float32.
        gain: (I,) float32 of the layer norm; None: there is none.
        shift: likewise.
        epsilon: likewise.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor | None = None
    shift: Tensor | None = None
    epsilon: float = 1e-5


class Kept(NamedTuple):
    """Saved values for backward beside inputs and weights.

    Attributes:
        statistics: (L, 2) float32, means and 1 / deviations; None without a norm.
        slope: (L, O) bfloat16, derivative of the GELU; None without one.
    """

    statistics: Tensor | None
    slope: Tensor | None


def _call(name: str, linear: Linear, x: Tensor, **tensors: Tensor | None) -> None:
    given = {"weight": linear.weight, "bias": linear.bias, **tensors}
    given |= {"gain": linear.gain, "shift": linear.shift}
    given |= {"x_half" if x.dtype == torch.bfloat16 else "x": x}
    pointers = {}
    for key, tensor in given.items():
        if tensor is not None:
            assert tensor.is_contiguous(), key
            pointers[key] = tensor.data_ptr()
    outputs, inputs = linear.weight.shape
    call = _Linear(rows=len(x), inputs=inputs, outputs=outputs, epsilon=linear.epsilon, **pointers)
    getattr(library(), name)(ctypes.addressof(call))


def forward(
    linear: Linear, x: Tensor, residual: Tensor | None = None, gelu: bool = False
) -> tuple[Tensor, Kept]:
    """Apply a map.

    Args:
        linear: the map.
        x: (L, I) float32, or bfloat16 where there is no norm; contiguous.
        residual: (L, O) float32, is added.
        gelu: whether a GELU follows; not with a residual.

    Returns:
        (L, O), bfloat16, or float32 with a residual; and what backward needs.
    """
    shape = (len(x), len(linear.weight))
    out = x.new_empty(shape, dtype=torch.bfloat16 if residual is None else torch.float32)
    slope = x.new_empty(shape, dtype=torch.bfloat16) if gelu else None
    statistics = None if linear.gain is None else x.new_empty(len(x), 2)
    to = {"out" if residual is None else "out_float": out}
    _call("linear", linear, x, residual=residual, slope=slope, statistics=statistics, **to)
    return out, Kept(statistics, slope)


def backward(
    linear: Linear, x: Tensor, kept: Kept, gradient: Tensor, beside: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of a map.

    Args:
        linear: the map.
        x: what went in.
        kept: of `forward`.
        gradient: (L, O) of what came out; bfloat16, or float32.
        beside: (L, I) float32, is added to the gradient of x; only with a norm.

    Returns:
        The gradient of x, likewise in shape and type, and those of weight and bias, and with a norm
        of gain and shift, all float32.
    """
    of_x = torch.empty_like(x)
    of_weights = {
        f"{name}_gradient": torch.empty_like(weight)
        for name in ("weight", "bias", "gain", "shift")
        if (weight := getattr(linear, name)) is not None
    }
    arrays = {
        "x_gradient" if x.dtype == torch.bfloat16 else "x_gradient_float": of_x,
        "gradient" if gradient.dtype == torch.bfloat16 else "gradient_float": gradient,
    }
    _call(
        "linear_backward", linear, x, residual=beside, statistics=kept.statistics,
        slope=kept.slope, **arrays, **of_weights,
    )  # fmt: skip
    return of_x, tuple(of_weights.values())
