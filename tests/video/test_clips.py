"""Resizing, windows and ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from video.clips import (
    Size,
    pad_last,
    resize_crop,
    resize_crop_float,
    to_clip,
    to_frames,
    window_starts,
)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (41, 63), (16, 16), (8, 5)])
def test_any_shape_becomes_the_square(shape: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (3, *shape, 3), dtype=torch.uint8)
    assert resize_crop(frames, 16).shape == (3, 16, 16, 3)
    assert resize_crop(frames, (12, 20)).shape == (3, 12, 20, 3)


def test_the_crop_is_the_centre() -> None:
    frames = torch.zeros(1, 16, 48, 3, dtype=torch.uint8)
    frames[:, :, 16:32] = 200
    assert (resize_crop(frames, 16) == 200).all()


def test_resizing_is_antialiased() -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = resize_crop(stripes, 8)
    assert small.float().std() < 8 and abs(float(small.float().mean()) - 127.5) < 2


@pytest.mark.parametrize(
    ("shape", "size", "resized", "corner"),
    [
        ((240, 320), 128, (128, 170), (0, 21)),  # not 171, which is nearer
        ((320, 240), 128, (170, 128), (21, 0)),
        ((240, 427), 128, (128, 227), (0, 50)),  # half of 99, rounded to the even
        ((32, 45), 32, (32, 45), (0, 6)),  # half of 13
        ((60, 80), (32, 48), (36, 48), (2, 0)),
        ((20, 20), 32, (32, 32), (0, 0)),
    ],
)
def test_floats_as_torchvision_resizes(
    shape: tuple[int, int], size: Size, resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    """The longer side is cut off to whole pixels, an odd rest rounded as Python rounds."""
    frames = torch.randint(0, 256, (2, *shape, 3), dtype=torch.uint8)
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    whole = F.interpolate(pixels, resized, mode="bilinear", align_corners=False, antialias=True)
    height, width = (size, size) if isinstance(size, int) else size
    (top, left), got = corner, resize_crop_float(frames, size)
    expected = whole[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
    assert got.shape == (2, height, width, 3) and torch.equal(got, expected)
    assert torch.equal(resize_crop_float(frames.float() / 255, size), got)
    same = resize_crop_float(frames, shape)
    assert torch.equal(same, frames.float() / 255)
    assert torch.equal(to_clip(same), (same * 2 - 1).permute(3, 0, 1, 2))


def test_bytes_survive_the_clip_range() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    clip = to_clip(frames)
    assert clip.shape == (3, 1, 16, 16) and float(clip.min()) == -1 and float(clip.max()) == 1
    assert torch.equal(to_frames(clip), frames)
    assert to_frames(clip * 2).max() == 255


@given(length=st.integers(1, 200), num_frames=st.integers(1, 32))
def test_windows_do_not_overlap_and_stay_inside(length: int, num_frames: int) -> None:
    starts = window_starts(length, num_frames)
    assert starts[0] == 0
    assert all(b - a == num_frames for a, b in pairwise(starts))
    if length >= num_frames:
        assert len(starts) == length // num_frames and starts[-1] + num_frames <= length
    else:
        assert starts == [0]


def test_the_last_frame_is_repeated() -> None:
    frames = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 2, 2, 3)
    assert pad_last(frames, 5)[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert pad_last(frames, 2) is frames
