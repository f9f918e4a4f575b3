"""Attention kernels of optional packages: the one place where they are imported."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from evatok.core.errors import EvatokError

KERNELS = {
    "flash": ("flash_attn", "flash_attn_varlen_func"),
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}
AMPERE = (8, 0)  # compute capability of the oldest GPUs that FlashAttention-2 runs on


@cache
def optional_function(name: str) -> Callable[..., Any] | None:
    """The kernel of a CUDA backend, or None where its package does not import."""
    module, attribute = KERNELS[name]
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None
    if name == "varlen" and "window_size" not in inspect.signature(function).parameters:
        return None  # older releases spell "causal" in another way
    return function


def required(name: str) -> Callable[..., Any]:
    """As `optional_function`.

    Raises:
        EvatokError: its package does not import.
    """
    function = optional_function(name)
    if function is None:
        raise EvatokError(
            f"attention backend {name!r} is not installed; the others need no package"
        )
    return function


def installed(device: str, dtype: torch.dtype) -> str | None:
    """The first of the kernels that is here and takes a device and float type."""
    if device != "cuda":
        return None
    is_half = dtype in (torch.float16, torch.bfloat16)  # all that the first two know
    is_new = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= AMPERE
    names = ("flash", "varlen", "xformers") if is_half and is_new else ("xformers",)
    return next((name for name in names if optional_function(name) is not None), None)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # One shape at a time: with symbolic shapes the compiler of CPU kernels fails (torch 2.13).
    return torch.compile(flex_attention, dynamic=False)


def flex(
    q: Tensor, k: Tensor, v: Tensor, visible: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """PyTorch's FlexAttention, compiled; blocks of the mask that are empty are never computed.

    Rows are padded to a power of two, so that few shapes are compiled.

    Args:
        q: (Q, Hd, Dh).
        k: (N, Hd, Dh).
        v: (N, Hd, Dh).
        visible: (batch, head, query, key) → bool; queries and keys are told up to the power of two
            from `flex_rows`.

    Returns:
        (Q, Hd, Dh).

    Raises:
        EvatokError: gradients are wanted on a CPU, where it has no backward.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    if q.device.type == "cpu" and torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    ):  # fmt: skip
        raise EvatokError("attention backend 'flex' has no backward on a CPU: train with another")
    queries, keys = flex_rows(len(q)), flex_rows(len(k))
    mask = create_block_mask(visible, None, None, queries, keys, device=str(q.device))
    rows = [
        torch.nn.functional.pad(x, (0, 0, 0, 0, 0, total - len(x))).transpose(0, 1)[None]
        for x, total in ((q, queries), (k, keys), (v, keys))
    ]
    return _compiled_flex()(*rows, block_mask=mask)[0].transpose(0, 1)[: len(q)]


def flex_rows(length: int) -> int:
    """Rows to which `flex` pads."""
    return max(128, 1 << (length - 1).bit_length())
