"""Fréchet distance extrapolated to infinitely many clips, and its interval at a finite number.

The distance of N vectors is too large by about b / N. Both sets are cut to the same n, and a line
through FD(n) against 1 / n meets the axis at the distance of infinite sets (Chong & Forsyth,
arXiv:1911.07023, with plain random subsets). A bootstrap would draw vectors twice and so double the
bias; the interval therefore comes from halves drawn without replacement.

A reconstruction belongs to its clip: vectors that share an id are in a subset together. Drawn
apart, pairs would be whole at n = N and broken below, and the distances on no line in 1 / n. For
sets that have nothing to do with each other any pairing is as good as none.

Shape letters: N vectors, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evatok.core.errors import EvatokError

SIZES = 12
FEWEST = 4  # vectors of a set whose halves have a covariance


class Interval(NamedTuple):
    """A value and its 95 % interval, for the expected value at this number of clips."""

    value: float
    low: float
    high: float


Ids = tuple[Sequence[str], Sequence[str]]


def extrapolated(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    seed: int = 0,
    sizes: int = SIZES,
    ids: Ids | None = None,
    biased: bool = True,
) -> float:
    """Fréchet distance of infinite sets.

    Args:
        x: (N, D) float.
        y: (M, D) float; the smaller count is what both are cut to.
        seed: of the subsets.
        sizes: of how many subsets the line is drawn through, from half of N to N.
        ids: of the N and M vectors; equal ones belong together. None: the n-th to the n-th.
        biased: of the covariances, as in `evaluation.metrics.frechet.frechet_distance`.

    Raises:
        EvatokError: too few vectors for two sizes.
    """
    a, b = (torch.as_tensor(z) for z in (x, y))
    most = min(len(a), len(b))
    counts = np.unique(np.linspace(most / 2, most, sizes).round().astype(int))
    if counts[0] < 2 or len(counts) < 2:
        raise EvatokError(f"{most} vectors are too few to extrapolate from")
    rng = np.random.default_rng(seed)
    values = []
    for count in counts.tolist():
        first, second = _orders(a, b, ids, rng)
        values.append(frechet_distance(a[first[:count]], b[second[:count]], biased))
    slope_and_limit = np.polyfit(1 / counts, values, 1)
    return float(slope_and_limit[1])


def interval(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    seed: int = 0,
    draws: int = 40,
    ids: Ids | None = None,
    biased: bool = True,
) -> Interval:
    """The distance with a 95 % interval for its expected value at this N.

    Distances of halves without replacement spread as those of independent whole sets do where the
    distance is large (a smooth statistic has variance s²(1/n − 1/N), at n = N/2 just s²/N), and
    more where it is all bias: there the interval is too wide rather than too narrow.

    Args:
        x: (N, D) float.
        y: (M, D) float.
        seed: of the draws.
        draws: how many halves.
        ids: as in `extrapolated`.
        biased: as in `extrapolated`.

    Raises:
        EvatokError: a side has fewer than `FEWEST` vectors, so that half of it has no covariance.
    """
    a, b = (torch.as_tensor(z) for z in (x, y))
    if min(len(a), len(b)) < FEWEST:
        raise EvatokError(f"an interval needs {FEWEST} vectors a side, not {len(a)} and {len(b)}")
    value = frechet_distance(a, b, biased)
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(draws):
        first, second = _orders(a, b, ids, rng)
        half = a[first[: len(a) // 2]], b[second[: len(b) // 2]]
        halves.append(frechet_distance(*half, biased))
    spread = student(draws - 1) * float(np.std(halves, ddof=1))
    return Interval(value, value - spread, value + spread)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t: a spread of few draws is itself uncertain."""
    z = 1.959964
    first, second = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z  # Cornish and Fisher's series
    return z + first / (4 * freedom) + second / (96 * freedom**2)


def _orders(
    a: Tensor, b: Tensor, ids: Ids | None, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Both sets in one random order of their ids; every set in a random order of its own vectors.

    Raises:
        EvatokError: not one id a vector.
    """
    names: Sequence[Sequence[Any]] = (range(len(a)), range(len(b))) if ids is None else ids
    if [len(names[0]), len(names[1])] != [len(a), len(b)]:
        raise EvatokError(
            f"{len(names[0])} and {len(names[1])} ids of {len(a)} and {len(b)} vectors"
        )
    every = sorted({*names[0], *names[1]})
    rank = dict(zip(every, rng.permutation(len(every)).tolist(), strict=True))
    first, second = (
        torch.from_numpy(np.argsort([rank[name] for name in side], kind="stable")) for side in names
    )
    return first, second
