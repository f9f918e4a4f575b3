"""PSNR, SSIM and flicker against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from evaluation.metrics.quality import (
    PSNR_CAP,
    Quality,
    flicker,
    mean_where_moving,
    moving,
    moving_psnr,
    psnr,
    psnr_frame,
    psnr_pooled,
    ssim,
)
from evaluation.perceptual.distance import FeatureDistance


def clips(batch: int = 2, frames: int = 4, height: int = 16, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 1.6 - 0.8


def test_psnr_of_a_constant_error() -> None:
    """An error of e on [-1, 1] is e / 2 of the range: −20 log₁₀(e / 2) dB."""
    x = clips()
    y = x + torch.tensor([0.02, 0.2]).view(2, 1, 1, 1, 1)
    expected = torch.tensor([40.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(psnr(x, y), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(psnr_frame(x, y), expected[:, None].expand(2, 4), atol=1e-4, rtol=0)
    pooled = -10 * math.log10((1e-4 + 1e-2) / 2)
    assert psnr_pooled(x, y) == pytest.approx(pooled, abs=1e-4)


def test_three_conventions_are_ordered() -> None:
    x = clips(3, 5)
    y = (x + 0.1 * torch.randn(3, 1, 5, 1, 1).exp() * torch.randn(x.shape)).clamp(-1, 1)
    assert psnr_pooled(x, y) <= float(psnr(x, y).mean()) <= float(psnr_frame(x, y).mean())
    theirs = peak_signal_noise_ratio(x, y, data_range=2.0)
    assert psnr_pooled(x, y) == pytest.approx(float(theirs), abs=1e-4)


def test_equal_clips_reach_the_caps() -> None:
    x = clips()
    assert psnr(x, x).tolist() == [PSNR_CAP] * 2
    assert psnr_frame(x, x).unique().tolist() == [PSNR_CAP]
    assert psnr_pooled(x, x) == PSNR_CAP
    assert flicker(x, x).tolist() == [0, 0]
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_ssim_of_constant_frames() -> None:
    """Without variance only luminance counts: (2ab + c₁) / (a² + b² + c₁) on [0, 1]."""
    a, b, c1 = 0.2, 0.6, 0.01**2
    x, y = torch.full((1, 3, 3, 12, 12), 2 * a - 1), torch.full((1, 3, 3, 12, 12), 2 * b - 1)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert float(ssim(x, y)) == pytest.approx(expected, abs=2e-4)


def test_ssim_is_per_frame() -> None:
    """One spoiled frame of four lowers the mean by a quarter of its own loss."""
    x = clips(1)
    y = x.clone()
    y[:, :, 2] = y[:, :, 2].flip(-1)
    alone = float(ssim(x[:, :, 2:3], y[:, :, 2:3]))
    assert float(ssim(x, y)) == pytest.approx((3 + alone) / 4, abs=1e-6)
    with pytest.raises(ValueError, match="11 × 11 pixels; frames are 10 × 20"):
        ssim(x[..., :10, :], y[..., :10, :])


def test_flicker_counts_change_only() -> None:
    x = clips()
    assert flicker(x + 0.2, x).tolist() == pytest.approx([0, 0], abs=1e-6)
    y = x.clone()
    y[:, :, ::2] += 0.1  # each pair of frames changes by 0.1 of 2
    assert flicker(y, x).tolist() == pytest.approx([0.05, 0.05], abs=1e-6)
    with pytest.raises(ValueError, match="2 frames"):
        flicker(x[:, :, :1], x[:, :, :1])


def test_means_do_not_depend_on_batches() -> None:
    x = clips(5)
    y = (x + 0.1 * torch.randn(x.shape)).clamp(-1, 1)
    whole, parts = Quality(), Quality()
    whole.update(y, x)
    for some in torch.arange(5).split(2):
        parts.update(y[some], x[some])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-9)
    assert whole.compute() == pytest.approx(
        {
            "psnr": float(psnr(x, y).mean()),
            "psnr_frame": float(psnr_frame(x, y).mean()),
            "psnr_pooled": psnr_pooled(x, y),
            "ssim": float(ssim(x, y).mean()),
            "moving_psnr": float(moving_psnr(y, x).mean()),
            "flicker": float(flicker(x, y).mean()),
            "num_clips": 5,
        }
    )
    with pytest.raises(ValueError, match="no clips"):
        Quality().compute()


def square(frames: int = 4) -> torch.Tensor:
    """(1, 3, F, 16, 16): a bright pixel on grey that goes two to the right with each frame."""
    x = torch.zeros(1, 3, frames, 16, 16)
    for f in range(frames):
        x[:, 1, f, 8, 3 + 2 * f] = 0.5
    return x


def test_which_pixels_move() -> None:
    mask = moving(square())
    assert mask.shape == (1, 4, 16, 16)
    for frame, columns in enumerate([(3, 5), (3, 5), (5, 7), (7, 9)]):  # left, and entered
        wanted = torch.zeros(16, 16, dtype=torch.bool)
        wanted[6:11, columns[0] - 2 : columns[1] + 3] = True
        assert torch.equal(mask[0, frame], wanted), frame
    assert not moving(0.39 * square()).any()  # 0.195
    assert moving(0.41 * square()).any()  # 0.205
    assert not moving(square(1)).any() and moving(square(1)).shape == (1, 1, 16, 16)


def test_moving_psnr_looks_at_what_moves_in_the_original() -> None:
    x = square()
    mask = moving(x)[:, None].expand_as(x)
    beside = torch.where(mask, x, x + 0.3)
    assert moving_psnr(beside, x).tolist() == [100.0]  # and `beside` moves elsewhere
    half = x.clone()
    half[:, 0][mask[:, 0]] += 0.2  # one channel of three by 0.1 of [0, 1]
    assert float(moving_psnr(half, x)) == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-5)
    assert moving_psnr(half, x).dtype == torch.float64
    assert float(psnr(half, x)) > float(moving_psnr(half, x)) + 5


def test_clips_in_which_nothing_moves_are_left_out_of_the_mean() -> None:
    x = torch.cat([square(), torch.zeros(1, 3, 4, 16, 16)])
    y = x + 0.1
    values = moving_psnr(y, x)
    assert float(values[0]) == pytest.approx(-20 * math.log10(0.05), abs=1e-4)
    assert math.isnan(float(values[1]))
    assert mean_where_moving(values) == float(values[0])
    assert mean_where_moving(values[1:]) is None
    whole, still = Quality(), Quality()
    whole.update(y, x)
    assert whole.compute()["moving_psnr"] == float(values[0])
    still.update(y[1:], x[1:])
    assert "moving_psnr" not in still.compute()


def test_single_frames_have_no_flicker() -> None:
    x = clips(3)
    quality = Quality()
    quality.update(x[:1, :, :1], x[1:2, :, :1])
    assert "flicker" not in quality.compute()
    quality.update(x[1:2], x[2:])
    values = quality.compute()
    assert values["flicker"] == pytest.approx(float(flicker(x[1:2], x[2:])))
    assert values["num_clips"] == 2


def test_a_perceptual_distance_keeps_its_own_name() -> None:
    """Of some network, never called LPIPS; a clip counts as one, whatever the batches."""

    class Pooled(nn.Module):
        def forward(self, frames: Tensor) -> list[Tensor]:
            return [nn.functional.avg_pool2d(frames, 4)]

    distance = FeatureDistance("pooled", "0", Pooled())
    x = clips(5)
    y = (x + 0.1 * torch.randn(x.shape)).clamp(-1, 1)
    quality = Quality(distance)
    for some in torch.arange(5).split(2):
        quality.update(y[some], x[some])
    values = quality.compute()
    assert values["pooled"] == pytest.approx(float(distance(y, x).mean()), rel=1e-5)
    assert values["num_clips"] == 5 and "pooled" not in Quality().clips


def test_refusals() -> None:
    x = clips()
    with pytest.raises(ValueError, match="alike"):
        psnr(x, x[:1])
    with pytest.raises(ValueError, match=r"clamped to \[-1, 1\]"):
        psnr(x * 255, x)
    with pytest.raises(ValueError, match="clamped"):
        psnr(x, x * math.nan)
