"""Compiling code that multiplies tiles (`tiles.h`), and whether the processor does so itself."""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path

import torch

from training.c_kernels import OPTIONS, NoCompiler, loaded

log = logging.getLogger(__name__)


def with_tiles(source: Path) -> ctypes.CDLL:
    """The library of a C file that includes `tiles.h`; with plain loops where there are no tiles.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    found = loaded(source, OPTIONS)
    if found.ask_for_tiles() < 0:  # the processor has them, the system does not allow them
        found = loaded(source, (*OPTIONS, "-DNO_TILES"))
    return found


@lru_cache
def has_tiles(source: Path) -> bool:
    """Whether a C file can be compiled here, and its tiles are the processor's."""
    try:
        found = with_tiles(source).ask_for_tiles() > 0
    except NoCompiler as error:
        log.warning("the tokenizer's layers are PyTorch's, since %s", error)
        return False
    log.info("the tokenizer's layers are %s in training", "our C code" if found else "PyTorch's")
    return found


def is_autocast_to_bfloat16(device: torch.device) -> bool:
    """Whether operations on a device, the CPU, are in bfloat16 now."""
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    return torch.get_autocast_dtype("cpu") == torch.bfloat16
