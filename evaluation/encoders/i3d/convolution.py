"""Convolutions of the I3D on processors with AMX, as accurate as float32 and faster (C code).

Three bfloat16 numbers hold a float32 one; six products of tiles make one of float32
(`convolution.c`). The sums are those of float32 in another order. Where there is no C compiler or
no AMX, PyTorch does the work.

Shape letters: B batch, C channels, F frames, H W pixels, O outputs, K kernel size.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.c_kernels import NoCompiler, loaded

SOURCE = Path(__file__).with_name("convolution.c")
WHOLE = 32  # inputs of a tile; outputs of two
SLACK = 1 << 14  # elements behind the last pixel that are read and do not count

log = logging.getLogger(__name__)


class _Split(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("frames", "rows", "columns", "channels")),
        *((name, ctypes.c_int64) for name in ("above", "left", "padded_rows")),
        *((name, ctypes.c_int64) for name in ("padded_columns", "padded", "part")),
        *((name, ctypes.c_void_p) for name in ("numbers", "parts")),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("lines", "pixels", "pitch", "width")),
        *((name, ctypes.c_int64) for name in ("step", "part", "tiles", "outputs")),
        *((name, ctypes.c_void_p) for name in ("parts", "weight", "bias", "starts", "first")),
        *((name, ctypes.c_void_p) for name in ("last", "offsets", "targets", "out")),
    ]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled code; None where there is no C compiler or no AMX."""
    try:
        found = loaded(SOURCE)
    except NoCompiler as error:
        log.warning("the I3D is PyTorch's, since %s", error)
        return None
    if found.ask_for_tiles() <= 0:
        return None
    for name in ("split", "convolve"):
        getattr(found, name).argtypes, getattr(found, name).restype = [ctypes.c_void_p], None
    return found


def _parts(x: Tensor) -> Tensor:
    """(3, …) bfloat16 whose sum is x, float32."""
    parts = []
    for _ in range(3):
        parts.append(x.to(torch.bfloat16))
        x = x - parts[-1].float()
    return torch.stack(parts)


@dataclass(frozen=True)
class Packed:
    """Weights as `convolution.c` reads them.

    Attributes:
        weight: (O / 32, tiles, 3, 2, 512) bfloat16.
        bias: (outputs, rounded up to 32) float32.
        inputs: C.
        outputs: O.
        kernel: K.
        stride: of the convolution.
    """

    weight: Tensor
    bias: Tensor
    inputs: int
    outputs: int
    kernel: int
    stride: int


def pack(weight: Tensor, bias: Tensor, stride: int) -> Packed:
    """Weights (O, C, K, K, K) and bias (O,), float32, for `convolve`.

    With a stride, a row of the kernel is one tap, for inputs of few channels.
    """
    outputs, inputs, kernel = weight.shape[:3]
    rows = weight.detach().permute(2, 3, 4, 1, 0)  # K, K, K, C, O
    rows = rows.flatten(2, 3) if stride > 1 else rows.flatten(1, 2)
    rows = rows.flatten(0, 1)  # taps, inputs of a tap, O
    rows = F.pad(rows, [0, -outputs % WHOLE, 0, -rows.shape[1] % WHOLE])
    parts = _parts(rows)  # 3, taps, inputs, O
    tiles = parts.unflatten(3, (-1, 2, 16)).unflatten(2, (-1, 16, 2))
    # 3, taps, depth, pair, of pair, O / 32, 2, column → O / 32, taps, depth, 3, 2, pair, column, of
    tiles = tiles.permute(5, 1, 2, 0, 6, 3, 7, 4).flatten(5, 7).flatten(1, 2).contiguous()
    padded = F.pad(bias.detach().float(), [0, -outputs % WHOLE])
    return Packed(tiles, padded, inputs, outputs, kernel, stride)


@lru_cache(maxsize=256)
def _places(
    kernel: int,
    stride: int,
    padded: int,
    frames: int,
    front: int,
    plane: tuple[int, int],
    shape: tuple[int, int, int],
) -> dict[str, Tensor]:
    """Where lines, taps and results lie, in elements; see `Convolution` in the C code.

    Args:
        kernel: K.
        stride: of the convolution.
        padded: elements of a pixel.
        frames: of the input.
        front: frames of zeros before them; taps there are passed over.
        plane: rows and columns of a frame, padding included.
        shape: frames, rows and columns of the result.
    """
    row, frame = plane[1] * padded, plane[0] * plane[1] * padded
    across = kernel if stride == 1 else 1  # otherwise a row of the kernel is one tap
    depth = -(-padded * (kernel // across) // WHOLE)
    offsets = [
        kt * frame + kh * row + kw * padded + WHOLE * tile
        for kt in range(kernel)
        for kh in range(kernel)
        for kw in range(across)
        for tile in range(depth)
    ]
    tiles = len(offsets) // kernel  # of a frame of the kernel
    lines = []
    for t in range(shape[0]):
        begin = t * stride - front
        first, last = max(0, -begin) * tiles, min(kernel, frames - begin) * tiles
        for h in range(1 if stride == 1 else shape[1]):
            start = begin * frame + h * stride * row
            lines.append((start, first, last, (t * shape[1] + h) * shape[2]))
    columns = dict(
        zip(("starts", "first", "last", "targets"), zip(*lines, strict=True), strict=True)
    )
    return {name: torch.tensor(found) for name, found in {**columns, "offsets": offsets}.items()}


def serves(x: Tensor) -> bool:
    """Whether `convolve` can take these inputs here."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or library() is None:
        return False
    return not (torch.is_grad_enabled() and x.requires_grad)


def convolve(
    x: Tensor, packed: Packed, fronts: Sequence[int], shape: tuple[int, int, int]
) -> Tensor:
    """Convolve, add the bias, take the ReLU; no gradient.

    Args:
        x: (B, C, F, H, W) float32 on the CPU, channels last in memory.
        packed: see `pack`.
        fronts: zeros before frames, rows and columns; those behind follow from the shape.
        shape: frames, rows and columns of the result.

    Returns:
        (B, O, *shape) float32, channels last.
    """
    found = library()
    assert found is not None, "ask `serves` first"
    x = x.detach().contiguous(memory_format=torch.channels_last_3d)
    stride, (frames, rows, columns) = packed.stride, x.shape[2:]
    out = torch.empty(
        (len(x), packed.outputs, *shape), memory_format=torch.channels_last_3d, dtype=x.dtype
    )
    sizes = [
        max((made - 1) * stride + packed.kernel, front + size)
        for made, front, size in zip(shape[1:], fronts[1:], (rows, columns), strict=True)
    ]
    padded = packed.inputs if stride > 1 else -(-packed.inputs // WHOLE) * WHOLE
    part = frames * sizes[0] * sizes[1] * padded + SLACK
    parts = torch.empty(3, part, dtype=torch.bfloat16)
    parts[:, -SLACK:] = 0  # a weight of zero times what is no number is none
    places = _places(packed.kernel, stride, padded, frames, fronts[0], (sizes[0], sizes[1]), shape)
    by_row = stride > 1  # else a frame is one line: its padding is computed and left out
    call = _Convolution(
        lines=len(places["starts"]),
        pixels=shape[2] if by_row else (shape[1] - 1) * sizes[1] + shape[2],
        pitch=shape[2] if by_row else sizes[1],
        width=shape[2],
        step=stride * padded,
        part=part,
        tiles=packed.weight.shape[1],
        outputs=packed.outputs,
        parts=parts.data_ptr(),
        weight=packed.weight.data_ptr(),
        bias=packed.bias.data_ptr(),
        **{name: place.data_ptr() for name, place in places.items()},
    )
    split = _Split(
        frames=frames, rows=rows, columns=columns, channels=packed.inputs, above=fronts[1],
        left=fronts[2],
        padded_rows=sizes[0], padded_columns=sizes[1], padded=padded, part=part,
        parts=parts.data_ptr(),
    )  # fmt: skip
    for clip, made in zip(x, out, strict=True):
        split.numbers, call.out = clip.data_ptr(), made.data_ptr()
        found.split(ctypes.addressof(split))
        found.convolve(ctypes.addressof(call))
    return out
