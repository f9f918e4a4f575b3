"""Compiled pieces of a model (`train.compile`): each once, whatever the number of rows.

A model that has `compile_parts` says what is worth compiling; such pieces are functions of tensors,
one for all layers of a kind, so that compiling takes seconds and not minutes. Any other model is
compiled as a whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from evatok.core.config import ConfigError

BACKEND = "inductor"


@runtime_checkable
class Parted(Protocol):
    """A module that compiles its own pieces."""

    def compile_parts(self) -> None:
        """From now on use compiled pieces while in train mode."""
        ...


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled form of a function of tensors."""
    return torch.compile(function, fullgraph=True, backend=BACKEND)


def any_length(dim: int, *tensors: Tensor) -> None:
    """Tell the compiler that a dimension of these tensors differs from step to step."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)


def parts_of(module: nn.Module) -> list[Parted]:
    """The modules that compile their own pieces: itself, or some in it."""
    return [part for part in module.modules() if isinstance(part, Parted)]


def compile_parts(module: nn.Module) -> bool:
    """Have a module compile its pieces; whether it, or a module in it, has any.

    Raises:
        ConfigError: the module is on the CPU, and there is no C++ compiler.
    """
    name = os.environ.get("CXX", "g++")
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    if on_cpu and BACKEND == "inductor" and shutil.which(name) is None:
        raise ConfigError(
            f"train.compile: there is no C++ compiler {name}; install one (CXX names another), "
            "or set train.compile=false (own videos: `compile: false` in their file)"
        )
    parts = parts_of(module)
    for part in parts:
        part.compile_parts()
    return bool(parts)
