"""The type that matrix products are computed in, on processors where the usual one is slow."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def multiplies_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a processor has instructions that multiply bfloat16.

    Those of AVX-512 and AMX, and Arm's. `avx_ne_convert` only converts.

    Args:
        capabilities: as `torch.cpu.get_capabilities()` tells them.
    """
    return any(on for name, on in capabilities.items() if "bf16" in name)


@lru_cache
def has_bfloat16(device_type: str) -> bool:
    """Whether products in bfloat16 are worth asking for on a device; a CPU is looked at once.

    A CPU without such instructions takes four times as long for them as for float32 (measured on
    a Cascade Lake, one thread, 8192 × 192 × 768: 26 against 112 GFLOP/s).
    """
    told = getattr(torch.cpu, "get_capabilities", None)  # since PyTorch 2.10
    return device_type != "cpu" or told is None or multiplies_bfloat16(told())


@lru_cache
def _tell_of_float32() -> None:
    log.info("this CPU has no bfloat16 products: bf16 is computed in float32, which is faster here")


def bfloat16_autocast(device_type: str, wanted: bool = True) -> torch.autocast:
    """Autocast to bfloat16, off where it is not wanted or only slower (`has_bfloat16`)."""
    enabled = wanted and has_bfloat16(device_type)
    if wanted and not enabled:
        _tell_of_float32()
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled)


def has_fast_float32(cpuinfo: str) -> bool:
    """Whether "medium" matmul precision is true float32 on a processor, and faster.

    On AMD processors "medium" sends products from MKL to oneDNN, which rounds to bf16 only where
    the processor has AMX. Measured on a Zen 5: 1.9 times as fast, error 3e-7 as before.

    Args:
        cpuinfo: text of /proc/cpuinfo.
    """
    return "AuthenticAMD" in cpuinfo and "amx" not in cpuinfo


@contextmanager
def fast_float32_matmul(device: torch.device) -> Iterator[None]:
    """Set the matmul precision to "medium" where that loses nothing, and set it back after."""
    cpuinfo = Path("/proc/cpuinfo")
    fits = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not (fits and cpuinfo.is_file() and has_fast_float32(cpuinfo.read_text())):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
