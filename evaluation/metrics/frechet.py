"""Fréchet distance between two sets of feature vectors, without covariances or matrix roots.

    FD = ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

For any factors Σᵢ = Fᵢᵀ Fᵢ the last trace is the sum of the singular values of F₁ F₂ᵀ. The centred
features divided by √N are such a factor, and so is the R of their QR decomposition. Nothing is
squared and no root is taken of a product, so the result keeps about 14 digits of
‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ where a matrix square root keeps half of them, or none when N < D.

Three ways in, one formula behind them:
- `frechet_distance`: both sets in memory;
- `evaluation.metrics.feature_metric.FrechetDistance`: a torchmetrics metric for sharded evaluation;
- `StreamingMoments`: O(D²) memory for any number of vectors.

Shape letters: N vectors of a set, D features, R rows of a factor.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.features import check_finite
from evatok.core.errors import EvatokError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of the scale; rounding is some 1e-15 of it
NEGATIVE = 1e-6  # of the largest eigenvalue: covariances of files went through float32


@dataclass(frozen=True)
class Moments:
    """Count, mean and covariance factor of a set.

    Attributes:
        count: N; None where it is not known.
        mean: (D,) float64.
        factor: (R, D) float64, R ≤ N, with covariance = factorᵀ · factor.
    """

    count: int | None
    mean: Tensor
    factor: Tensor


def frechet_distance(x: Tensor | np.ndarray, y: Tensor | np.ndarray, biased: bool = True) -> float:
    """Fréchet distance of two sets of features.

    Args:
        x, y: (N, D) and (M, D), any real type; computed in float64 on the CPU.
        biased: divide covariances by N, as the StyleGAN-V and LARP code does; else by N − 1.

    Raises:
        EvatokError: a set is not a matrix, has fewer than 2 rows, or a row that is not finite.
    """
    a, b = _matrix(x, "the first set"), _matrix(y, "the second set")
    if a.shape[1] != b.shape[1]:
        raise EvatokError(f"the sets have {a.shape[1]} and {b.shape[1]} features; they must agree")
    # A common origin changes no distance and makes the difference of large means exact.
    origin = (a.mean(0) + b.mean(0)) / 2
    return distance_between(_moments(a - origin, biased), _moments(b - origin, biased))


def distance_between(x: Moments, y: Moments) -> float:
    """Fréchet distance of two sets of which only the moments are known; logs when N ≤ D.

    Of (x, y) the same bits as of (y, x): rounding depends on the order, so there is only one.
    """
    x, y = sorted((x, y), key=_bits)
    for moments in (x, y):
        if moments.count is not None and moments.count <= len(moments.mean):
            logger.warning(
                "%d vectors of %d features: the covariance is singular and bias dominates the "
                "distance; compare only equal counts",
                moments.count,
                len(moments.mean),
            )
    cross = torch.linalg.svdvals(x.factor @ y.factor.T).sum()
    scale = (x.mean - y.mean).square().sum() + x.factor.square().sum() + y.factor.square().sum()
    distance = float(scale - 2 * cross)
    if not distance >= -TOLERANCE * float(scale):
        raise ArithmeticError(f"distance {distance} of sets with scale {float(scale)}")
    return max(distance, 0.0)


def _bits(moments: Moments) -> tuple[int, bytes, bytes]:
    return moments.count or 0, moments.mean.numpy().tobytes(), moments.factor.numpy().tobytes()


def _matrix(x: Tensor | np.ndarray, what: str) -> Tensor:
    features = torch.as_tensor(x).detach().cpu().double()
    if features.ndim != 2:
        raise EvatokError(f"{what} has shape {tuple(features.shape)}; features are (N, D)")
    if len(features) < 2:
        raise EvatokError(f"{what} has {len(features)} rows; a covariance needs 2 or more")
    check_finite(features, what)
    return features


def _moments(features: Tensor, biased: bool) -> Moments:
    """Moments of (N, D) float64, which is used up: a large set is not copied again and again."""
    n, d = features.shape
    mean = features.mean(0)
    factor = features.sub_(mean)
    rounding = factor.mean(0)  # what a first mean of large values has lost
    factor.sub_(rounding)
    if n > d:
        factor = torch.linalg.qr(factor, mode="r").R
    return Moments(n, mean + rounding, factor.div_(math.sqrt(n if biased else n - 1)))


def moments_of_features(features: Tensor | np.ndarray, biased: bool = True) -> Moments:
    """Moments of features (N, D); `biased` and errors as in `frechet_distance`."""
    return _moments(_matrix(features, "the set").clone(), biased)


def moments_of(mean: Tensor, covariance: Tensor, count: int | None = None) -> Moments:
    """Moments of a mean (D,) and a covariance (D, D), float64.

    Eigenvalues that are rounding, D · ε of the largest and below, are left out: a distance loses
    half of the digits that it has from features where the covariance is singular.

    Args:
        mean: (D,).
        covariance: (D, D), symmetric.
        count: N, if known.

    Raises:
        EvatokError: the covariance has an eigenvalue that is negative beyond rounding.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    largest = float(values[-1].clamp(min=0))
    if float(values[0]) < -NEGATIVE * largest:
        raise EvatokError(
            f"a covariance with the eigenvalue {float(values[0]):.4g} (the largest is "
            f"{float(values[-1]):.4g}) is none"
        )
    kept = values > len(values) * torch.finfo(torch.float64).eps * largest
    return Moments(count, mean, (vectors[:, kept] * values[kept].sqrt()).T.contiguous())


class StreamingMoments:
    """Moments of any number of vectors in O(D²) memory, exact and mergeable in any order.

    The state is the R of the QR decomposition of [1 | features − origin], the origin being the
    mean of the first update: the column of ones in front carries count and mean, the rest of R is
    a factor of the covariance. New rows and other states are stacked below it and decomposed
    again. No products are summed, so nothing cancels when the mean is large.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.origin = torch.zeros(dim, dtype=torch.float64)
        self.state = torch.zeros(0, dim + 1, dtype=torch.float64)

    @property
    def count(self) -> int:
        """N so far: R₀₀ is ± √N."""
        return round(float(self.state[0, 0]) ** 2) if len(self.state) else 0

    def update(self, features: Tensor | np.ndarray) -> None:
        """Take in (N, D) features, N ≥ 0."""
        rows = torch.as_tensor(features).detach().cpu().double()
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise EvatokError(f"features are (N, {self.dim}), not {tuple(rows.shape)}")
        check_finite(rows, "this update")
        if len(rows):
            origin = rows.mean(0)
            ones = torch.ones(len(rows), 1, dtype=torch.float64)
            self._stack(torch.cat([ones, rows - origin], 1), origin)

    def merge(self, other: StreamingMoments) -> None:
        """Take in everything that `other` has seen; `other` stays as it is."""
        if other.dim != self.dim:
            raise EvatokError(f"cannot merge states of {self.dim} and {other.dim} features")
        if len(other.state):
            self._stack(other.state, other.origin)

    def _stack(self, rows: Tensor, origin: Tensor) -> None:
        """Take in [c | c · (features − origin)], (R, D + 1)."""
        if not len(self.state):
            self.origin = origin
        moved = rows[:, 1:] + rows[:, :1] * (origin - self.origin)
        rows = torch.cat([rows[:, :1], moved], 1)
        self.state = torch.linalg.qr(torch.cat([self.state, rows]), mode="r").R

    def compute(self, biased: bool = True) -> Moments:
        """The moments; `biased` as in `frechet_distance`."""
        n = self.count
        if n < 2:
            raise EvatokError(f"{n} vectors seen; a covariance needs 2 or more")
        mean = self.origin + self.state[0, 1:] / self.state[0, 0]
        return Moments(n, mean, self.state[1:, 1:] / math.sqrt(n if biased else n - 1))

    def distance(self, other: StreamingMoments, biased: bool = True) -> float:
        """Fréchet distance to another set."""
        return distance_between(self.compute(biased), other.compute(biased))
