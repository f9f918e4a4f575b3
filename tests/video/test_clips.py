"""Resizing, windows and ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video.clips import pad_last, resize_crop, to_clip, to_frames, window_starts


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
