"""Kernel distances (maximum mean discrepancy) between two sets of feature vectors.

| name | kernel | statistic |
| --- | --- | --- |
| KVD (as TATS; KID, arXiv:1801.01401) | (x·y / D + 1)³ | unbiased: a mean of 0 for equal laws |
| JEDi (arXiv:2410.05203) | (x·y / D)² | biased, times 100 |

An unbiased estimate may be below 0, and is for a set and itself. JEDi's kernel sees no more than
the uncentred second moments, and so needs no pairs. Both in float64, pairs in blocks.

Shape letters: N, M vectors of the sets, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.features import check_finite
from evatok.core.errors import EvatokError

BLOCK = 2048  # rows of a block of pairs


def kernel_distance(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """KVD: Σ_{i≠j} k(xᵢ, xⱼ) / N(N − 1) + the same of y − 2 mean k(xᵢ, yⱼ).

    Args:
        x: (N, D) float, N ≥ 2.
        y: (M, D) float, M ≥ 2.

    Raises:
        EvatokError: fewer than two vectors, other shapes, or values that are not finite.
    """
    a, b = _sides(x, y, 2)
    n, m = len(a), len(b)
    within = _sum(a, a) - float(_cubic(a.square().sum(1), a.shape[1]).sum())
    across = _sum(b, b) - float(_cubic(b.square().sum(1), b.shape[1]).sum())
    return within / (n * (n - 1)) + across / (m * (m - 1)) - 2 * _sum(a, b) / (n * m)


def jedi_distance(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """100 MMD² of (x·y / D)², biased: 100 / D² ‖XᵀX / N − YᵀY / M‖², O(N D²).

    Args:
        x: (N, D) float.
        y: (M, D) float.
    """
    a, b = _sides(x, y, 1)
    difference = a.T @ a / len(a) - b.T @ b / len(b)
    return 100 * float(difference.square().sum()) / a.shape[1] ** 2


def _sides(x: Tensor | np.ndarray, y: Tensor | np.ndarray, least: int) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(z).detach().double() for z in (x, y))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise EvatokError(f"features are (N, D) and (M, D), not {(*a.shape,)} and {(*b.shape,)}")
    for name, side in (("first", a), ("second", b)):
        if len(side) < least:
            raise EvatokError(f"the {name} set has {len(side)} vectors; {least} or more are needed")
        check_finite(side, f"the {name} set")
    return a, b


def _cubic(product: Tensor, dim: int) -> Tensor:
    return (product / dim + 1) ** 3


def _sum(a: Tensor, b: Tensor) -> float:
    """Σ of the kernel over all pairs."""
    return sum(float(_cubic(part @ b.T, a.shape[1]).sum()) for part in a.split(BLOCK))
