"""Proxy reward: standardised quality minus standardised length (method section 4).

R(x, a) = w_q · Q(x, a) − w_l · L̂(a), with w_q + w_l = 2. Mean and standard deviation of both are
taken over random clips × uniformly random assignments; a table of every candidate of every clip
is exactly that population.

Shape letters: N clips, M = m^T candidates, T blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.assignment import Levels
from training.config import Config


class Standard(Config):
    """Means and standard deviations that make quality and length comparable."""

    mean_quality: float
    std_quality: float
    mean_length: float
    std_length: float


def psnr_of_mse(mse: Tensor) -> Tensor:
    """dB for mean squared errors of values in [−1, 1] (peak 2), at most 100 dB."""
    return 10 * torch.log10(4 / mse.clamp_min(4e-10))


def standard_of(quality: Tensor, lengths: Tensor) -> Standard:
    """Statistics of a table.

    Args:
        quality: (N, M) float, higher is better (PSNR, or −LPIPS).
        lengths: (M,) tokens of each candidate.
    """
    lengths = lengths.double()
    quality = quality.double()
    return Standard(
        mean_quality=float(quality.mean()),
        std_quality=float(quality.std(correction=0)),
        mean_length=float(lengths.mean()),
        std_length=float(lengths.std(correction=0)),
    )


def rewards(quality: Tensor, lengths: Tensor, standard: Standard, w_q: float | Tensor) -> Tensor:
    """Rewards of candidates.

    Args:
        quality: (N, M) float, higher is better.
        lengths: (M,) tokens of each candidate.
        standard: statistics, of the training table.
        w_q: weight of quality in [0, 2], one or (N, 1); length gets 2 − w_q.

    Returns:
        (N, M) float64.
    """
    weight = torch.as_tensor(w_q)
    if weight.min() < 0 or weight.max() > 2:
        raise ValueError(f"w_q {w_q} is outside [0, 2]")
    q = (quality.double() - standard.mean_quality) / standard.std_quality
    length = (lengths.double() - standard.mean_length) / standard.std_length
    return weight * q - (2 - weight) * length


def percentile(table: Tensor, chosen: Tensor) -> float:
    """Proxy reward percentile P of choices, in percent.

    P = (E[R(chosen)] − E[R(worst)]) / (E[R(best)] − E[R(worst)]) · 100 (method section 5).

    Args:
        table: (N, M) rewards of every candidate.
        chosen: (N,) int64, the candidate taken for each clip.
    """
    worst, best = table.min(1).values.mean(), table.max(1).values.mean()
    got = table.gather(1, chosen[:, None]).mean()
    return float((got - worst) / (best - worst) * 100)


def best_uniform(table: Tensor, levels: Levels, num_blocks: int) -> tuple[int, float]:
    """The level that, given to every block of every clip, earns the highest mean reward.

    Returns:
        (token count, percentile).
    """
    scores: dict[int, float] = {}
    for value in levels.values:
        index = levels.index(torch.full((num_blocks,), value))
        scores[value] = percentile(table, index.expand(len(table)))
    best = max(scores, key=lambda value: scores[value])
    return best, scores[best]
