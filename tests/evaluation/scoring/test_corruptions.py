"""What spoils clips spoils what it says, and more of it the stronger it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evaluation.scoring.corruptions import DAMAGES, blur, freeze, noise, shuffle


@pytest.fixture
def clips() -> Tensor:
    """(2, 3, 16, 20, 24): every frame has a mean of its own."""
    generator = torch.Generator().manual_seed(0)
    detail = torch.rand(2, 3, 16, 20, 24, generator=generator) - 0.5
    return detail + torch.linspace(-0.4, 0.4, 16).view(1, 1, -1, 1, 1)


def test_blur_is_a_gaussian() -> None:
    """Of one bright pixel: exp(−d² / 2σ²), summing to 1; constant clips stay."""
    spot = torch.zeros(1, 3, 2, 21, 21)
    spot[..., 10, 10] = 1
    out = blur(spot, 1.0)
    torch.testing.assert_close(out.sum((3, 4)), torch.ones(1, 3, 2))
    ratio = out[..., 12, 11] / out[..., 10, 10]
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.exp(-5 / 2)))
    flat = torch.full((1, 3, 2, 8, 8), 0.3)
    torch.testing.assert_close(blur(flat, 2.0), flat)


def test_noise_is_new_in_each_frame_and_the_same_at_each_strength() -> None:
    grey = torch.zeros(1, 3, 4, 32, 32)
    weak, strong = noise(grey, 0.01), noise(grey, 0.02)
    assert float(weak.std()) == pytest.approx(0.01, rel=0.05)
    torch.testing.assert_close(strong, 2 * weak)
    assert not torch.equal(weak[:, :, 0], weak[:, :, 1])
    assert float(noise(grey, 5.0).abs().max()) == 1


@pytest.mark.parametrize("count", [2, 8, 16])
def test_shuffle_moves_that_many_frames(clips: Tensor, count: int) -> None:
    out = shuffle(clips, count)
    moved = (out != clips).flatten(3).any(3).any(1)  # (B, F)
    assert moved.sum(1).tolist() == [count, count]
    means = out.mean((1, 3, 4)).sort(1).values
    torch.testing.assert_close(means, clips.mean((1, 3, 4)).sort(1).values)


def test_freeze_repeats_the_last_frame_that_moved(clips: Tensor) -> None:
    out = freeze(clips, 12)
    assert torch.equal(out[:, :, :4], clips[:, :, :4])
    assert torch.equal(out[:, :, 4:], clips[:, :, 3:4].expand(-1, -1, 12, -1, -1))
    with pytest.raises(ValueError, match="at most 15"):
        freeze(clips, 16)


@pytest.mark.parametrize("name", DAMAGES)
def test_each_moves_clips_further_the_stronger_it_is(clips: Tensor, name: str) -> None:
    spoil, strengths, _ = DAMAGES[name]
    before = clips.clone()
    errors = [float((spoil(clips, strength) - clips).square().mean()) for strength in strengths]
    assert len(strengths) >= 5 and strengths == tuple(sorted(strengths))
    assert errors[0] > 0 and errors[-1] > errors[0]
    assert torch.equal(clips, before)
    assert spoil(clips, strengths[-1]).shape == clips.shape
