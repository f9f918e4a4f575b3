"""What the tokenizers are trained on (method section 3; the basic recipe).

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.model import Reconstruction
from training.config import Config


class LossConfig(Config):
    """Weight of each term. A term with weight 0 is not computed."""

    l1: float = 1.0  # mean absolute error
    l2: float = 0.0  # mean squared error
    log_l2: float = 0.0  # mean over clips of log squared error: PSNR itself, up to scale
    codebook: float = 1.0
    commitment: float = 0.25  # β
    entropy: float = 0.02  # γ


# log_l2 is floored here: (2 / 255)² / 12, the error of rounding to bytes.
LOG_FLOOR = (2 / 255) ** 2 / 12


def tokenizer_loss(
    result: Reconstruction, clips: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms.

    Args:
        result: of the tokenizer on these clips.
        clips: (B, 3, F, H, W) float32 in [−1, 1].
        config: weights.

    Returns:
        The scalar loss, and every computed term unweighted, detached.
    """
    error = result.clips.float() - clips
    quantized = result.quantized
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = error.abs().mean()
    if config.l2:
        terms["l2"] = error.square().mean()
    if config.log_l2:
        per_clip = error.square().mean((1, 2, 3, 4))
        terms["log_l2"] = (per_clip + LOG_FLOOR).log().mean()
    if config.codebook:
        terms["codebook"] = quantized.codebook_loss
    if config.commitment:
        terms["commitment"] = quantized.commitment_loss
    if config.entropy:
        terms["entropy"] = quantized.entropy_loss
    if not terms:
        raise ValueError("every loss weight is 0: nothing to train on")
    total = torch.stack([getattr(config, name) * value for name, value in terms.items()]).sum()
    return total, {name: value.detach() for name, value in terms.items()}
