"""Proxy reward: standardised quality minus standardised length (method section 4).

R(x, a) = w_q · Q(x, a) − w_l · L̂(a), with w_q + w_l = 2. Mean and standard deviation of both are
taken over random clips × uniformly random assignments; a table of every candidate of every clip
is exactly that population.

Shape letters: N clips, M = m^T candidates, T blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from evatok.core.config import Config
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels

# What a reward may be made of: PSNR, that of the pixels where the clip moves, or minus a perceptual
# distance.
Quality = Literal["psnr", "moving_psnr", "lpips", "efficientnet-lite0"]

ROWS = 4096  # of a table that are taken to float64 at a time


class RewardStats(Config):
    """Means and standard deviations that make quality and length comparable."""

    mean_quality: float
    std_quality: float
    mean_length: float
    std_length: float


@dataclass(frozen=True)
class TableMoments:
    """Count, mean and sum of squared deviations; those of parts merge to those of the whole.

    Parts may lie with different processes and be merged in any order (Chan, Golub & LeVeque 1983).
    """

    count: int
    mean: float
    deviations: float

    @classmethod
    def from_values(cls, values: Tensor) -> TableMoments:
        """Of numbers of any shape; NaN is none."""
        values = values[~values.isnan()].double()
        mean = values.mean()
        return cls(values.numel(), float(mean), float((values - mean).square().sum()))

    def merged(self, other: TableMoments) -> TableMoments:
        """Of both together."""
        count = self.count + other.count
        gap = other.mean - self.mean
        deviations = self.deviations + other.deviations
        return TableMoments(
            count,
            self.mean + gap * other.count / count,
            deviations + gap * gap * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Of the population."""
        return (self.deviations / self.count) ** 0.5


def psnr_of_mse(mse: Tensor) -> Tensor:
    """dB for mean squared errors of values in [−1, 1] (peak 2), at most 100 dB."""
    return 10 * torch.log10(4 / mse.clamp_min(4e-10))


def reward_stats(quality: Tensor, lengths: Tensor) -> RewardStats:
    """Statistics of a table.

    Args:
        quality: (N, M) float, higher is better (PSNR, or −LPIPS); NaN where not searched.
        lengths: (M,) tokens of each candidate.
    """
    lengths = lengths.double()
    moments = reduce(TableMoments.merged, map(TableMoments.from_values, quality.split(ROWS)))
    return RewardStats(
        mean_quality=moments.mean,
        std_quality=moments.std,
        mean_length=float(lengths.mean()),
        std_length=float(lengths.std(correction=0)),
    )


def rewards(quality: Tensor, lengths: Tensor, standard: RewardStats, w_q: float | Tensor) -> Tensor:
    """Rewards of candidates.

    Args:
        quality: (N, M) float, higher is better; NaN where not searched, then the reward is too.
        lengths: (M,) tokens of each candidate.
        standard: statistics, of the training table.
        w_q: weight of quality in [0, 2], one or (N, 1); length gets 2 − w_q.

    Returns:
        (N, M) float64.
    """
    weight = torch.as_tensor(w_q)
    if weight.min() < 0 or weight.max() > 2:
        raise EvatokError(f"w_q {w_q} is outside [0, 2]")
    q = (quality.double() - standard.mean_quality) / standard.std_quality
    length = (lengths.double() - standard.mean_length) / standard.std_length
    return weight * q - (2 - weight) * length


def percentile(table: Tensor, chosen: Tensor) -> float:
    """`percentiles` as a number."""
    return float(percentiles(table, chosen))


def percentiles(table: Tensor, chosen: Tensor) -> Tensor:
    """Proxy reward percentile P of choices, in percent: (), on their device.

    P = (E[R(chosen)] − E[R(worst)]) / (E[R(best)] − E[R(worst)]) · 100 (method section 5).

    Args:
        table: (N, M) rewards of every candidate; NaN for those that count neither as the best nor
            as the worst.
        chosen: (N,) int64, the candidate taken for each clip.
    """
    missing = table.isnan()
    worst = table.masked_fill(missing, torch.inf).min(1).values.mean()
    best = table.masked_fill(missing, -torch.inf).max(1).values.mean()
    got = table.gather(1, chosen[:, None]).mean()
    return (got - worst) / (best - worst) * 100


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
