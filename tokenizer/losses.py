"""What the tokenizers are trained on (method section 3; the basic recipe).

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from evaluation.perceptual import PerceptualDistance, PerceptualName, load_perceptual
from tokenizer.model import Reconstruction
from training.compilation import compiled
from training.config import Config


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
    codebook: float = 1.0
    commitment: float = 0.25  # β
    entropy: float = 0.02  # γ
    perceptual: PerceptualConfig = PerceptualConfig()


# log_l2 is floored here: (2 / 255)² / 12, the error of rounding to bytes.
LOG_FLOOR = (2 / 255) ** 2 / 12


def pixel_errors(
    made: Tensor, clips: Tensor, absolute: bool = False, square: bool = True, clamp: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean errors of pixels.

    Args:
        made: (B, 3, F, H, W) reconstructions, any float type.
        clips: (B, 3, F, H, W) float32 in [−1, 1].
        absolute: whether the first is computed; zero otherwise.
        square: likewise the second.
        clamp: take reconstructions to [−1, 1] first.

    Returns:
        Absolute error, a scalar, and squared error of each clip, (B,).
    """
    made = made.float()
    error = (made.clamp(-1, 1) if clamp else made) - clips
    return (
        error.abs().mean() if absolute else error.new_zeros(()),
        error.square().mean((1, 2, 3, 4)) if square else error.new_zeros(len(error)),
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
    of_pixels = compiled(pixel_errors) if is_compiled else pixel_errors
    absolute, per_clip = of_pixels(
        result.clips, clips, bool(config.l1), bool(config.l2 or config.log_l2)
    )
    quantized = result.quantized
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = absolute
    if config.l2:
        terms["l2"] = per_clip.mean()
    if config.log_l2:
        terms["log_l2"] = (per_clip + LOG_FLOOR).log().mean()
    if config.codebook:
        terms["codebook"] = quantized.codebook_loss
    if config.commitment:
        terms["commitment"] = quantized.commitment_loss
    if config.entropy:
        terms["entropy"] = quantized.entropy_loss
    weights = {name: getattr(config, name) for name in terms}
    if perceptual is not None:
        seen, real = result.clips, clips
        if config.perceptual.frames is not None and config.perceptual.frames < clips.shape[2]:
            order = torch.randperm(clips.shape[2], generator=generator)
            frames = order[: config.perceptual.frames].sort().values.to(clips.device)
            seen, real = seen[:, :, frames], real[:, :, frames]
        terms[perceptual.name] = perceptual(seen, real).mean()
        weights[perceptual.name] = config.perceptual.weight
    if not terms:
        raise ValueError("every loss weight is 0: nothing to train on")
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return total, {name: value.detach() for name, value in terms.items()}
