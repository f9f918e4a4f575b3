"""Jumps between clips are spread where pictures stand, and left where things move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.evt.borders import FAR, SPAN, smooth_border


def still(value: int, frames: int = 16) -> Tensor:
    return torch.full((frames, 6, 5, 3), value, dtype=torch.uint8)


def test_a_small_jump_becomes_small_steps() -> None:
    before, after = still(100), still(118)
    smooth_border(before, after)
    values = torch.cat([before, after])[:, 0, 0, 0].float()
    steps = values.diff()[16 - SPAN - 1 : 16 + SPAN]
    assert values[: 16 - SPAN].eq(100).all() and values[16 + SPAN :].eq(118).all()
    assert float(steps.sum()) > 16 and float(steps.max()) <= 6 and bool((steps >= 1).all())


def test_what_moves_is_left_alone() -> None:
    before, after = still(10), still(int(10 + FAR + 1))
    after[:, :, :2] = 20  # half of the picture stands
    kept = before.clone(), after.clone()
    smooth_border(before, after)
    assert torch.equal(before[:, :, 2:], kept[0][:, :, 2:])
    assert torch.equal(after[:, :, 2:], kept[1][:, :, 2:])
    assert not torch.equal(before[:, :, :2], kept[0][:, :, :2])


def test_frames_that_differ_from_the_border_are_left_alone() -> None:
    before, after = still(100), still(110)
    before[-3:-1] = 250
    smooth_border(before, after)
    assert bool(before[-3:-1].eq(250).all()) and before[-1, 0, 0, 0] > 100


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_short_clips(frames: int) -> None:
    before, after = still(100), still(118, frames)
    smooth_border(before, after)
    span = frames // 2
    assert int((before[:, 0, 0, 0] != 100).sum()) == int((after[:, 0, 0, 0] != 118).sum()) == span
