"""The shapes of a module's weights without their values, and without PyTorch's compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

FILLING = {"normal_", "uniform_", "trunc_normal_"}
POINTWISE = {
    *("mul", "__mul__", "__rmul__", "div", "__truediv__", "__rtruediv__", "__rdiv__"),
    *("pow", "__pow__", "__rpow__", "neg", "__neg__", "sin", "cos", "normalize"),
}


class ShapesAlone(TorchFunctionMode):
    """Under `torch.device("meta")`: a new module's first values are answered by their shapes.

    PyTorch's own answers there are the same, but it imports its compiler and sympy for them, which
    takes a second: longer than all else of loading. Functions that are not known here are run.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, or answer with a tensor of the shape that it would have made."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in FILLING:
            return args[0] if args else kwargs["tensor"]
        if name == "eye" and "out" in kwargs:
            return kwargs["out"]
        counts = bool(args) and not kwargs and all(type(value) is int for value in args)
        if name == "randn" and counts:
            return torch.empty(args)
        if name == "arange" and counts:
            return torch.empty(len(range(*args)), dtype=torch.int64)
        if name in POINTWISE:
            given = [value for value in args[:2] if isinstance(value, torch.Tensor)]
            if all(value.is_meta for value in given):
                shape = np.broadcast_shapes(*(value.shape for value in given))
                kinds = {value.dtype for value in given if value.is_floating_point()}
                return torch.empty(shape, dtype=kinds.pop() if len(kinds) == 1 else None)
        return func(*args, **kwargs)
