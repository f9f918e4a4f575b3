"""Arrays in files of anyone's making: .npy, .npz, .pt. Nothing is unpickled but plain tensors.

What a header declares is compared with the bytes that are there before memory is asked for.
"""

from __future__ import annotations

import math
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from evatok.core.errors import EvatokError

DEFLATE = 1032  # the most that a compressed byte can stand for


class ArrayError(EvatokError):
    """A file of arrays that cannot be used."""


# What readers of damaged files raise; anything else is a mistake of ours.
DAMAGE = (
    *(ValueError, OSError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, EOFError, MemoryError, SyntaxError, struct.error, zlib.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile, tokenize.TokenError),
)


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file.

    Raises:
        FileNotFoundError: no such file.
        ArrayError: no plain array, or of another length than it declares.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            _check_header(file, size)
        return np.load(path, allow_pickle=False)
    except DAMAGE as error:
        reason = _reason(error)
    raise ArrayError(f"{path} holds no plain array ({reason})")


def iter_npz(path: Path, only: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and array of each array of a .npz file, sorted by name, one at a time.

    Args:
        path: of the file.
        only: name of the one array to read; all if None.

    Raises:
        FileNotFoundError: no such file.
        ArrayError: no plain arrays, or of another length than they declare.
    """
    path.stat()
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
                raise EvatokError("not an archive of arrays, each with a name of its own")
            for name in names if only is None else [f"{only}.npy"]:
                info = archive.getinfo(name)
                if info.file_size > DEFLATE * info.compress_size + 64:
                    raise EvatokError(f"{name} declares more bytes than its part can hold")
                with archive.open(info) as file:
                    _check_header(file, info.file_size)
                with archive.open(info) as file:
                    array = npy.read_array(file, allow_pickle=False)
                yield name.removesuffix(".npy"), array
            return
    except DAMAGE as error:
        reason = _reason(error)
    raise ArrayError(f"{path} holds no plain arrays ({reason})")


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless an array of the size (bytes, header included) begins here."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise EvatokError(f"arrays of format {version} are not read")
    if dtype.hasobject:
        raise EvatokError("it holds Python objects")
    if min(shape, default=0) < 0:
        raise EvatokError(f"it declares a shape of {shape}")
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != there:
        raise EvatokError(f"it declares {declared} bytes and has {there}")


def read_torch(path: Path) -> Any:
    """Return what is in a .pt file: a tensor, or a dict, list or tuple of what it may be.

    Every tensor is dense, on the CPU, and no larger than the file.

    Raises:
        FileNotFoundError: no such file.
        ArrayError: damaged, other objects than plain values, or tensors of another kind.
    """
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > size:
                    raise EvatokError("it declares more bytes than it has")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(loaded, size, 0)
        return loaded
    except DAMAGE as error:
        reason = _reason(error)
    raise ArrayError(f"{path} holds no plain tensors ({reason})")


def _check_tensors(value: Any, size: int, depth: int) -> None:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_quantized:
            raise EvatokError("a tensor is not dense")
        if value.device.type != "cpu":
            raise EvatokError(f"a tensor is on {value.device}")
        if value.nbytes > size:
            raise EvatokError(f"a tensor of {value.nbytes} bytes in a file of {size}")
    elif depth < 8 and isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_tensors(inner, size, depth + 1)


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's advice is to run what is in the file
        return "damaged, or objects that would have to be run"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "it ends early"
