"""PSNR, SSIM and flicker against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from evaluation.perceptual import FeatureDistance
from evaluation.quality import (
    PSNR_CAP,
    Quality,
    flicker,
    psnr,
    psnr_frame,
    psnr_pooled,
    ssim,
)


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
            "flicker": float(flicker(x, y).mean()),
            "num_clips": 5,
        }
    )
    with pytest.raises(ValueError, match="no clips"):
        Quality().compute()


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
