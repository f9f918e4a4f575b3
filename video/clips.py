"""Frames to clips: resizing, cropping, windows, ranges.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from evatok.core.errors import EvatokError

Size = int | tuple[int, int]  # pixels: the side of a square, or (height, width)

# How a picture gets its size: rounded to bytes again, or as floats, which LARP's code scores
Resizing = Literal["bytes", "float"]

# Which frames of a video are clips: its first F; F in a row, drawn at random; every run of F
# without overlap; or so many of these runs, drawn at random (all of a video that has fewer)
Choice = Literal["first", "random", "all"]
WindowRule = Choice | Annotated[int, Field(ge=1)]


def window_rule(text: str) -> WindowRule:
    """Read a `WindowRule`, as options name it.

    Raises:
        EvatokError: it is none.
    """
    for choice in get_args(Choice):
        if text == choice:
            return choice
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise EvatokError(
        f"window {text!r} is none of {', '.join(get_args(Choice))}, nor a number of windows a video"
    )


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def resize_crop(frames: Tensor, size: Size) -> Tensor:
    """Resize until the picture covers the size (bilinear, antialiased), then crop the centre.

    Args:
        frames: (F, H, W, 3) uint8.
        size: side of the square, or (height, width); the picture covers it, nothing is stretched.

    Returns:
        (F, height, width, 3) uint8.
    """
    height, width = sides(size)
    rows, columns = frames.shape[1:3]
    if (rows, columns) == (height, width):
        return frames
    target = covering(rows, columns, (height, width))
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    return resize(frames, target)[:, top : top + height, left : left + width].contiguous()


def resize_crop_float(frames: Tensor, size: Size) -> Tensor:
    """Resize and crop as torchvision's `Resize` and `CenterCrop` do it with floats.

    Other than in `resize_crop` the longer side is cut off to whole pixels (320 × 240 becomes
    170 × 128), an odd rest is cropped as Python rounds its half, and nothing is rounded to bytes.

    Args:
        frames: (F, H, W, 3) uint8, or floats in [0, 1].
        size: side of the square, or (height, width); the picture covers it, nothing is stretched.

    Returns:
        (F, height, width, 3) float32 in [0, 1].
    """
    x = frames.float() if frames.is_floating_point() else frames.float() / 255
    (height, width), (rows, columns) = sides(size), frames.shape[1:3]
    if (rows, columns) == (height, width):
        return x
    if height * columns >= width * rows:
        target = (height, int(height * columns / rows))
    else:
        target = (int(width * rows / columns), width)
    x = F.interpolate(x.permute(0, 3, 1, 2), target, mode="bilinear", antialias=True)
    top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)
    x = x[:, :, top : top + height, left : left + width]
    return x.permute(0, 2, 3, 1).contiguous()


def fitted(frames: Tensor, size: Size, resizing: Resizing) -> Tensor:
    """Resize and crop (F, H, W, 3): uint8 by `resize_crop`, or floats by `resize_crop_float`."""
    return (resize_crop if resizing == "bytes" else resize_crop_float)(frames, size)


def covering(height: int, width: int, size: Size) -> tuple[int, int]:
    """The smallest (height, width) in proportion to a picture's that covers a size."""
    rows, columns = sides(size)
    scale = max(rows / height, columns / width)
    return max(rows, round(height * scale)), max(columns, round(width * scale))


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(F, H, W, 3) uint8 to another height and width, bilinear and antialiased."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    x = F.interpolate(
        frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True
    )  # (F, 3, H', W')
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_clip(frames: Tensor) -> Tensor:
    """(F, H, W, 3) uint8, or float32 in [0, 1] → (3, F, H, W) float32 in [−1, 1]."""
    clip = frames.permute(3, 0, 1, 2)
    return (clip * 2 if frames.is_floating_point() else clip.float().div_(127.5)).sub_(1)


def to_frames(clip: Tensor) -> Tensor:
    """(3, F, H, W) float in [−1, 1], clamped and rounded → (F, H, W, 3) uint8."""
    bytes_ = clip.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return bytes_.permute(1, 2, 3, 0).contiguous()


def pad_last(frames: Tensor, count: int) -> Tensor:
    """Repeat the last of frames (F, H, W, 3) up to `count`; longer ones stay as they are."""
    if len(frames) >= count:
        return frames
    return torch.cat([frames, frames[-1:].expand(count - len(frames), -1, -1, -1)])


def window_starts(length: int, num_frames: int) -> list[int]:
    """First frames of all non-overlapping windows; the tail is dropped.

    A video shorter than a window has one: its last frame will be repeated.

    Args:
        length: frames of the video.
        num_frames: frames of a window.
    """
    return list(range(0, max(1, length - num_frames + 1), num_frames))


def drawn_starts(length: int, num_frames: int, rule: WindowRule, draw: Random) -> list[int]:
    """First frames of the windows that a rule takes of a video, ascending.

    Args:
        length: frames of the video.
        num_frames: frames of a window.
        rule: see `WindowRule`.
        draw: makes the choices of "random" and of a number.
    """
    if rule == "first":
        return [0]
    if rule == "random":
        return [draw.randint(0, max(length - num_frames, 0))]
    starts = window_starts(length, num_frames)
    if rule == "all" or rule >= len(starts):
        return starts
    return sorted(draw.sample(starts, rule))
