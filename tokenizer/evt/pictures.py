"""Fitting of pictures of any size to a tokenizer of one size, and back.

| fit | the tokenizer sees | shown again |
| --- | --- | --- |
| `tile` | the whole picture at its own size, in overlapping tiles | as it was |
| `crop` | the middle, resized until it covers one tile | that part |
| `pad` | the whole picture, made to fit into one tile | enlarged to its size |
| `stretch` | the whole picture, squeezed into one tile | at its size |
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from video.clips import Size, resize, resize_crop, sides

Fit = Literal["tile", "crop", "pad", "stretch"]


def coded_size(fit: Fit, height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width at which a picture is coded."""
    if fit == "tile":
        return height, width
    if fit == "pad":
        rows, columns = sides(size)
        scale = min(rows / height, columns / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    return sides(size)


def shown_size(fit: Fit, height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width at which it is shown again."""
    return sides(size) if fit == "crop" else (height, width)


def to_coded(frames: Tensor, fit: Fit, size: Size) -> Tensor:
    """Frames (F, H, W, 3) uint8 to their coded size."""
    height, width = frames.shape[1:3]
    if fit == "crop":
        return resize_crop(frames, size)
    return resize(frames, coded_size(fit, height, width, size))
