"""Precision and recall, density and coverage: fidelity and diversity told apart.

A ball around each vector reaches to its k-th neighbour of the same set. Precision is the share of
fake vectors inside some real ball, recall the share of real ones inside some fake ball
(Kynkäänniemi et al., arXiv:1904.06991, k = 3). Density is the mean number of real balls around a
fake vector over k, coverage the share of real balls with a fake vector inside (Naeem et al.,
arXiv:2002.09797, k = 5). A ball holds its edge.

Distances are sums of squared differences, never the expanded form, which loses everything where
features have a large mean. Memory is bounded: pairs in blocks.

Shape letters: N, M vectors of the sets, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.features import check_finite
from evatok.core.errors import EvatokError

PAIRS = 1 << 22  # differences held at a time


class Coverage(NamedTuple):
    """All four numbers; precision, recall and coverage are shares."""

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(
    real: Tensor | np.ndarray, fake: Tensor | np.ndarray, k: int = 5, k_precision: int | None = None
) -> Coverage:
    """Compare two sets.

    Args:
        real: (N, D) float, N > k.
        fake: (M, D) float, M > k.
        k: neighbours that a ball reaches to.
        k_precision: another k for precision and recall; None = k.

    Raises:
        EvatokError: too few vectors, other shapes, or values that are not finite.
    """
    a, b = (torch.as_tensor(z).detach().double() for z in (real, fake))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise EvatokError(f"features are (N, D) and (M, D), not {(*a.shape,)} and {(*b.shape,)}")
    first = k if k_precision is None else k_precision
    if min(len(a), len(b)) <= max(k, first):
        raise EvatokError(f"sets of {len(a)} and {len(b)}: more than k {max(k, first)} are needed")
    for name, side in (("real", a), ("fake", b)):
        check_finite(side, f"the {name} side")
    real_radii, fake_radii = _radii(a, sorted({k, first})), _radii(b, [first])
    in_real = torch.zeros(len(b), dtype=torch.bool)
    in_fake = torch.zeros(len(a), dtype=torch.bool)
    around = torch.zeros(len(b), dtype=torch.int64)
    covered = torch.zeros(len(a), dtype=torch.bool)
    at = 0
    for part in _parts(a, b):
        rows = slice(at, at + len(part))
        squared = _squared(part, b)  # (R, M)
        in_real |= (squared <= real_radii[first][rows, None]).any(0)
        in_fake[rows] = (squared <= fake_radii[first]).any(1)
        inside = squared <= real_radii[k][rows, None]
        around += inside.sum(0)
        covered[rows] = inside.any(1)
        at += len(part)
    return Coverage(
        float(in_real.double().mean()),
        float(in_fake.double().mean()),
        float(around.double().mean()) / k,
        float(covered.double().mean()),
    )


def _parts(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return a.split(max(1, PAIRS // max(1, b.numel())))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """(R, M) squared distances by direct differences."""
    return (a[:, None] - b[None]).square_().sum(-1)


def _radii(x: Tensor, ks: list[int]) -> dict[int, Tensor]:
    """For each k the squared distance (N,) to the k-th neighbour, the vector itself not counted."""
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    at = 0
    for part in _parts(x, x):
        squared = _squared(part, x)
        own = torch.arange(at, at + len(part))
        squared[torch.arange(len(part)), own] = torch.inf
        nearest = squared.topk(ks[-1], largest=False).values
        for k in ks:
            found[k].append(nearest[:, k - 1])
        at += len(part)
    return {k: torch.cat(parts) for k, parts in found.items()}
