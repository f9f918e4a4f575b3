"""What a Fréchet distance would be with infinitely many clips, and how far a finite one may be off.

The distance of N vectors is too large by about b / N. Both sets are cut to the same n, and a line
through FD(n) against 1 / n meets the axis at the distance of infinite sets (Chong & Forsyth,
arXiv:1911.07023, with plain random subsets). A bootstrap would draw vectors twice and so double the
bias; the interval therefore comes from halves drawn without replacement.

Shape letters: N vectors, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance

SIZES = 12


class Interval(NamedTuple):
    """A value and its 95 % interval, for the expected value at this number of clips."""

    value: float
    low: float
    high: float


def extrapolated(
    x: Tensor | np.ndarray, y: Tensor | np.ndarray, seed: int = 0, sizes: int = SIZES
) -> float:
    """Fréchet distance of infinite sets.

    Args:
        x: (N, D) float.
        y: (M, D) float; the smaller count is what both are cut to.
        seed: of the subsets.
        sizes: of how many subsets the line is drawn through, from half of N to N.

    Raises:
        ValueError: too few vectors for two sizes.
    """
    a, b = (torch.as_tensor(z) for z in (x, y))
    most = min(len(a), len(b))
    counts = np.unique(np.linspace(most / 2, most, sizes).round().astype(int))
    if counts[0] < 2 or len(counts) < 2:
        raise ValueError(f"{most} vectors are too few to extrapolate from")
    rng = np.random.default_rng(seed)
    values = []
    for count in counts.tolist():
        first, second = _cut(a, b, count, rng)
        values.append(frechet_distance(first, second))
    slope_and_limit = np.polyfit(1 / counts, values, 1)
    return float(slope_and_limit[1])


def interval(
    x: Tensor | np.ndarray, y: Tensor | np.ndarray, seed: int = 0, draws: int = 20
) -> Interval:
    """The biased distance with a 95 % interval for its expected value at this N.

    Distances of halves without replacement spread as those of independent whole sets do where the
    distance is large (a smooth statistic has variance s²(1/n − 1/N), at n = N/2 just s²/N), and
    more where it is all bias: there the interval is too wide rather than too narrow.

    Args:
        x: (N, D) float.
        y: (M, D) float.
        seed: of the draws.
        draws: how many halves.
    """
    a, b = (torch.as_tensor(z) for z in (x, y))
    value = frechet_distance(a, b)
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(draws):
        first, second = (
            z[torch.from_numpy(rng.permutation(len(z))[: len(z) // 2])] for z in (a, b)
        )
        halves.append(frechet_distance(first, second))
    spread = 1.96 * float(np.std(halves, ddof=1))
    return Interval(value, value - spread, value + spread)


def _cut(a: Tensor, b: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    first, second = (torch.from_numpy(rng.permutation(len(z))[:count]) for z in (a, b))
    return a[first], b[second]
