"""Kernel distances, precision and recall, and what infinitely many clips would say."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.metrics.feature_metric import (
    CoverageMetric,
    FeatureMetric,
    JediDistance,
    KernelDistance,
)
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.fvd_infinity import extrapolated, interval
from evaluation.metrics.kernel import jedi_distance, kernel_distance
from evaluation.metrics.prdc import coverage
from tests.evaluation.golden import features, load_golden


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Any]]:
    return load_golden()


def gaussian(count: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + shift


def test_golden_kernel_distances(golden: dict[str, Any]) -> None:
    for name, truth in golden.items():
        x, y = features(golden[name])
        size = max(1.0, float(np.abs(x.astype(np.float64)).max()) ** 2)  # of the kernel's terms
        assert kernel_distance(x, y) == pytest.approx(
            truth["kvd_poly3_unbiased"], rel=1e-9, abs=1e-12 * size**3
        ), name
        assert jedi_distance(x, y) == pytest.approx(
            truth["jedi_poly2_biased_x100"], rel=1e-8, abs=1e-10 * size**2
        ), name


def test_golden_precision_and_recall(golden: dict[str, Any]) -> None:
    seen = 0
    for name, truth in golden.items():
        for k in (3, 5):
            if f"prdc_k{k}" in truth:
                seen += 1
                found = coverage(*features(golden[name]), k=k)
                assert found._asdict() == pytest.approx(truth[f"prdc_k{k}"], abs=1e-12), (name, k)
    assert seen >= 10


def test_jedi_is_its_kernel_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gaussian(30, 7, 0).double(), gaussian(40, 7, 1, 0.3).double()

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(((a @ b.T / 7) ** 2).mean())

    expected = 100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert jedi_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert jedi_distance(-x, y) == pytest.approx(expected, rel=1e-10)  # blind to the sign
    whole, covered = kernel_distance(x, y), coverage(x, y)
    monkeypatch.setattr("evaluation.metrics.kernel.BLOCK", 7)
    monkeypatch.setattr("evaluation.metrics.prdc.PAIRS", 500)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)
    assert coverage(x, y) == covered


def test_kernel_distance_is_unbiased() -> None:
    """Two halves of one set: a mean of 0 within two standard errors."""
    rng = np.random.default_rng(0)
    pool = gaussian(400, 12, 5) @ torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    values = []
    for _ in range(200):
        order = torch.from_numpy(rng.permutation(400))
        values.append(kernel_distance(pool[order[:200]], pool[order[200:]]))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    # a pair within a half and a pair across are equally random pairs of the set: exactly unbiased
    assert abs(np.mean(values)) < 2 * error


@pytest.mark.parametrize("kind", [KernelDistance, JediDistance, CoverageMetric])
def test_sharding_changes_no_bit(kind: type[FeatureMetric]) -> None:
    x, y = gaussian(100, 8, 0), gaussian(90, 8, 1, 0.2)
    whole = kind(8)
    whole.update(x, torch.arange(100), True)
    whole.update(y, torch.arange(90), False)
    rng = random.Random(0)
    jobs = [(side, row) for side, n in ((True, 100), (False, 90)) for row in range(n)]
    jobs += [(True, 3), (False, 5)]  # a sampler that fills up its last batch
    rng.shuffle(jobs)
    cuts = sorted(rng.sample(range(1, len(jobs)), 6))
    shards = [jobs[a:b] for a, b in zip([0, *cuts], [*cuts, len(jobs)], strict=True)]
    rng.shuffle(shards)
    parts: list[FeatureMetric] = []
    for shard in shards:
        part = kind(8)
        for is_real, row in shard:
            features = (x if is_real else y)[row : row + 1]
            part.update(features, torch.tensor([row]), is_real)
        parts.append(part)
    merged, *others = parts
    for part in others:
        merged.merge_state(part)
    assert merged.compute() == whole.compute()


def test_errors_name_the_rule() -> None:
    with pytest.raises(ValueError, match="the second set has 1 vectors; 2 or more"):
        kernel_distance(gaussian(4, 3, 0), gaussian(1, 3, 0))
    with pytest.raises(ValueError, match="more than k 5 are needed"):
        coverage(gaussian(5, 3, 0), gaussian(9, 3, 0))
    with pytest.raises(ValueError, match=r"features are \(N, D\) and \(M, D\)"):
        jedi_distance(gaussian(4, 3, 0), gaussian(4, 2, 0))
    bad = gaussian(9, 3, 0)
    bad[4, 1] = torch.nan
    with pytest.raises(ValueError, match="row 4 is NaN"):
        kernel_distance(bad, gaussian(9, 3, 1))


def test_infinitely_many_clips() -> None:
    """The bias of a finite count is taken away: 0 for equal laws, ‖shift‖² for a shift."""
    for shift in (0.0, 0.3):
        truth = 20 * shift**2
        x, y = gaussian(4000, 20, 2), gaussian(4000, 20, 3, shift)
        biased, limit = frechet_distance(x, y), extrapolated(x, y)
        assert abs(limit - truth) < abs(biased - truth) or abs(biased - truth) < 0.02
        assert abs(limit - truth) < 0.06 + 0.5 * shift  # the means' own error
    with pytest.raises(ValueError, match="too few"):
        extrapolated(gaussian(3, 2, 0), gaussian(2, 2, 0))


@pytest.mark.slow
def test_extrapolation_at_the_size_of_the_literature() -> None:
    x, y = gaussian(10_000, 400, 0), gaussian(10_000, 400, 1, 0.05)
    assert abs(extrapolated(x, y) - 400 * 0.05**2) < 0.1


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_intervals_hold_the_expected_value(shift: float) -> None:
    """Of 60 here; `python -m benchmarks.intervals` counts 200."""
    dim, count = 8, 120
    values = [
        frechet_distance(gaussian(count, dim, 2 * s), gaussian(count, dim, 2 * s + 1, shift))
        for s in range(5000, 5300)
    ]
    expected = float(np.mean(values))
    inside = 0
    for seed in range(60):
        x, y = gaussian(count, dim, 2 * seed), gaussian(count, dim, 2 * seed + 1, shift)
        found = interval(x, y, seed)
        inside += found.low <= expected <= found.high
    assert inside >= 54
