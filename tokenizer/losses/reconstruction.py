"""Reconstruction loss of the tokenizers (method section 3; the basic recipe).

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from pydantic import Field
from torch import Tensor

from evaluation.metrics.quality import moving
from evaluation.perceptual.distance import PerceptualDistance, PerceptualName
from evaluation.perceptual.load import load_perceptual
from evatok.core.config import Config
from evatok.core.errors import EvatokError
from tokenizer.model import Reconstruction
from training.compilation import compiled


class PerceptualConfig(Config):
    """The distance that a frozen network sees. Weight 0 = nothing is loaded, built or run."""

    network: PerceptualName = "lpips"
    weight: float = Field(default=0.0, ge=0)
    path: Path | None = None  # of the network's weights; null = in the cache
    # So many frames of the clips, drawn anew in each step, instead of all.
    frames: int | None = Field(default=None, ge=1)

    def load(self) -> PerceptualDistance | None:
        """The distance, or None where it has no weight.

        Raises:
            FileNotFoundError: its weights are not here; the message says how to get them.
        """
        return load_perceptual(self.network, self.path) if self.weight else None


class LossConfig(Config):
    """Weight of each term. A term with weight 0 is not computed."""

    l1: float = 1.0  # mean absolute error
    l2: float = 0.0  # mean squared error
    log_l2: float = 0.0  # mean over clips of log squared error: PSNR itself, up to scale
    gradient: float = 0.0  # mean absolute error of the differences of neighbours in a row or column
    # How much more a pixel counts in the four terms above where the clip moves, and by its contrast
    # to what is around it, see `pixel_weights`. 0 and 0: all count alike.
    motion_weight: float = Field(default=0.0, ge=0)
    detail_weight: float = Field(default=0.0, ge=0)
    codebook: float = 1.0
    commitment: float = 0.25  # β
    entropy: float = 0.02  # γ
    perceptual: PerceptualConfig = PerceptualConfig()


# log_l2 is floored here: (2 / 255)² / 12, the error of rounding to bytes.
LOG_FLOOR = (2 / 255) ** 2 / 12


def pixel_weights(clips: Tensor, motion: float, detail: float) -> Tensor:
    """Weight of each pixel: 1 + motion · moving + detail · contrast, over the clip's mean.

    A clip counts as much as any other, however much of it moves. Contrast is the largest channel's
    absolute difference to the mean of the 5 × 5 pixels around, in [0, 2].

    Args:
        clips: (B, 3, F, H, W) float32 in [−1, 1], the real ones.
        motion: weight of pixels that move (`evaluation.metrics.quality.moving`).
        detail: weight of contrast.

    Returns:
        (B, 1, F, H, W) float32 with mean 1 in each clip.
    """
    weights = 1 + motion * moving(clips).float()  # (B, F, H, W)
    if detail:
        frames = clips.transpose(1, 2).flatten(0, 1)  # (B F, 3, H, W)
        around = nnf.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)
        contrast = (frames - around).abs().amax(1)
        weights = weights + detail * contrast.unflatten(0, weights.shape[:2])
    return (weights / weights.mean((1, 2, 3), keepdim=True))[:, None]


def pixel_errors(
    made: Tensor,
    clips: Tensor,
    weights: Tensor | None = None,
    absolute: bool = False,
    square: bool = True,
    gradient: bool = False,
    clamp: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean errors of pixels.

    Args:
        made: (B, 3, F, H, W) reconstructions, any float type.
        clips: (B, 3, F, H, W) float32 in [−1, 1].
        weights: (B, 1, F, H, W) what each pixel counts, see `pixel_weights`; None: all alike.
        absolute: whether the first is computed; zero otherwise.
        square: likewise the second.
        gradient: likewise the third.
        clamp: take reconstructions to [−1, 1] first.

    Returns:
        Absolute error, a scalar; squared error of each clip, (B,); absolute error of the
        differences of neighbours in a row or column, a scalar.
    """
    made = made.float()
    error = (made.clamp(-1, 1) if clamp else made) - clips
    zero = error.new_zeros(())
    size = error.abs() if absolute else zero
    squares = error.square() if square else error.new_zeros((len(error), 1, 1, 1, 1))
    across = [error.diff(dim=axis).abs() for axis in (3, 4)] if gradient else [zero]
    if weights is not None:
        size, squares = weights * size, weights * squares
        if gradient:
            across = [
                part * weights.narrow(axis, 1, part.shape[axis])
                for part, axis in zip(across, (3, 4), strict=True)
            ]
    return (
        size.mean(),
        squares.mean((1, 2, 3, 4)),
        torch.stack([part.mean() for part in across]).mean(),
    )


def tokenizer_loss(
    result: Reconstruction,
    clips: Tensor,
    config: LossConfig,
    perceptual: PerceptualDistance | None = None,
    generator: torch.Generator | None = None,
    is_compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms.

    Args:
        result: of the tokenizer on these clips.
        clips: (B, 3, F, H, W) float32 in [−1, 1].
        config: weights.
        perceptual: `config.perceptual.load()`.
        generator: on the CPU, draws its frames where it does not look at all.
        is_compiled: whether the errors of pixels are computed by compiled code.

    Returns:
        The scalar loss, and every computed term unweighted, detached; the perceptual one under its
        distance's name.
    """
    weights = None
    if config.motion_weight or config.detail_weight:
        weights = pixel_weights(clips, config.motion_weight, config.detail_weight)
    of_pixels = compiled(pixel_errors) if is_compiled else pixel_errors
    absolute, per_clip, across = of_pixels(
        result.clips,
        clips,
        weights,
        bool(config.l1),
        bool(config.l2 or config.log_l2),
        bool(config.gradient),
    )
    quantized = result.quantized
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = absolute
    if config.l2:
        terms["l2"] = per_clip.mean()
    if config.log_l2:
        terms["log_l2"] = (per_clip + LOG_FLOOR).log().mean()
    if config.gradient:
        terms["gradient"] = across
    if config.codebook:
        terms["codebook"] = quantized.codebook_loss
    if config.commitment:
        terms["commitment"] = quantized.commitment_loss
    if config.entropy:
        terms["entropy"] = quantized.entropy_loss
    shares = {name: getattr(config, name) for name in terms}
    if perceptual is not None:
        seen, real = result.clips, clips
        if config.perceptual.frames is not None and config.perceptual.frames < clips.shape[2]:
            order = torch.randperm(clips.shape[2], generator=generator)
            frames = order[: config.perceptual.frames].sort().values.to(clips.device)
            seen, real = seen[:, :, frames], real[:, :, frames]
        terms[perceptual.name] = perceptual(seen, real).mean()
        shares[perceptual.name] = config.perceptual.weight
    if not terms:
        raise EvatokError("every loss weight is 0: nothing to train on")
    total = torch.stack([shares[name] * value for name, value in terms.items()]).sum()
    return total, {name: value.detach() for name, value in terms.items()}
