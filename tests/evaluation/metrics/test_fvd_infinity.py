"""Limits and intervals of paired sets: reconstructions and their clips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.fvd_infinity import extrapolated, interval
from evaluation.scoring.clips import Item
from evaluation.scoring.score import score_sides

DIM, COUNT = 8, 120


def pair(seed: int, noise: float = 0.5, shift: float = 0.1) -> tuple[Tensor, Tensor]:
    """Vectors and what a tokenizer leaves of them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((COUNT, DIM))
    y = 0.9 * x + noise * rng.standard_normal((COUNT, DIM)) + shift
    return torch.from_numpy(x), torch.from_numpy(y)


def test_a_set_against_itself_is_zero() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((600, 64)))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    names = [f"clip {number}" for number in range(600)]
    assert abs(extrapolated(x, x)) < 1e-6
    found = interval(x, x)
    assert abs(found.low) < 1e-6 and abs(found.high) < 1e-6
    ids = (names, [names[number] for number in order.tolist()])
    assert abs(extrapolated(x, x[order], ids=ids)) < 1e-6  # whatever stands beside what


def test_intervals_of_pairs_hold_the_expected_value() -> None:
    """In 200 trials, and without being wide: chance itself spreads at least a third as far."""
    values = np.array([frechet_distance(*pair(seed)) for seed in range(1000, 1300)])
    found = [interval(*pair(seed), seed=seed) for seed in range(200)]
    inside = sum(one.low <= values.mean() <= one.high for one in found)
    width = np.mean([one.high - one.low for one in found]) / (2 * 1.96 * values.std(ddof=1))
    assert inside >= 180, inside
    assert width < 2, width


def test_limits_of_pairs_are_near_the_truth() -> None:
    """‖Δμ‖² + D (σ₁ − σ₂)² of the law, at which the biased value is not yet."""
    truth = DIM * (0.1**2 + (1 - (0.9**2 + 0.5**2) ** 0.5) ** 2)
    limits = [extrapolated(*pair(seed), seed=seed) for seed in range(60)]
    values = [frechet_distance(*pair(seed)) for seed in range(60)]
    assert abs(np.mean(limits) - truth) < abs(np.mean(values) - truth) / 3


@pytest.mark.parametrize("sizes", [(40, 40), (30, 50)])
def test_swapped_sides_are_the_same_bits(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for dim in (6, 60):
        x, y = (torch.from_numpy(rng.standard_normal((n, dim)) * (1 + n)) for n in sizes)
        assert frechet_distance(x, y) == frechet_distance(y, x)
        assert extrapolated(x, y) == extrapolated(y, x)
        assert interval(x, y) == interval(y, x)


def test_one_id_a_vector() -> None:
    x, y = pair(0)
    with pytest.raises(ValueError, match="1 and 1 ids of 120 and 120 vectors"):
        extrapolated(x, y, ids=(["a"], ["a"]))


class Side:
    """Clips with ids, given in an order of its own."""

    def __init__(self, clips: Tensor, ids: list[str]) -> None:
        self.clips, self.ids = clips, ids

    def walk(self, is_wanted: object, cache: object, process: object = None) -> Iterator[Item]:
        for number, (name, clip) in enumerate(zip(self.ids, self.clips, strict=True)):
            yield Item(number, name, f"{id(self)} {name}", clip)

    def exchange(self) -> None:
        """Nothing was learned."""


class Means:
    name, dim, checksum = "means", 3, "sum"

    def __call__(self, clips: Tensor) -> Tensor:
        return clips.mean((2, 3, 4))


def test_scores_pair_clips_by_their_ids() -> None:
    clips = torch.rand(40, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = [f"{number}" for number in range(40)]
    real, fake = Side(clips, names), Side(clips.flip(0), names[::-1])
    result = score_sides(real, fake, [Means()], metrics=("fvd", "fvd-infinity"), with_interval=True)
    assert abs(result["fvd-infinity[means]"]) < 1e-6
    assert max(map(abs, result["interval[means]"])) < 1e-6


def covariance_free(x: Tensor, y: Tensor) -> float:
    """Slow: the Fréchet distance from NumPy's unbiased moments."""
    a, b = x.numpy(), y.numpy()
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    cross = 2 * np.sqrt(values.real.clip(0)).sum()
    return float(
        np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - cross
    )


def test_unbiased_holds_in_limits_and_intervals() -> None:
    """Against the same line and halves drawn here, of distances from NumPy's moments."""
    x, y = pair(0)
    counts = np.unique(np.linspace(COUNT / 2, COUNT, 12).round().astype(int))
    rng = np.random.default_rng(0)
    orders = [np.argsort(rng.permutation(COUNT)) for _ in counts]
    values = [covariance_free(x[o[:n]], y[o[:n]]) for o, n in zip(orders, counts, strict=True)]
    limit = np.polyfit(1 / counts, values, 1)[1]
    assert extrapolated(x, y, biased=False) == pytest.approx(limit, abs=1e-9)
    assert extrapolated(x, y) != pytest.approx(limit, abs=1e-6)
    found = interval(x, y, biased=False)
    assert found.value == pytest.approx(covariance_free(x, y), abs=1e-9)
    rng = np.random.default_rng(0)
    halves = [np.argsort(rng.permutation(COUNT))[: COUNT // 2] for _ in range(40)]
    spread = np.std([covariance_free(x[half], y[half]) for half in halves], ddof=1)
    assert (found.high - found.low) / 2 == pytest.approx(2.0227 * spread, rel=1e-4)


def test_scores_are_unbiased_when_asked() -> None:
    clips = torch.rand(40, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = [f"{number}" for number in range(40)]
    sides = Side(clips, names), Side(clips * 0.9, names)
    metrics = ("fvd", "fvd-infinity")
    both = [
        score_sides(*sides, [Means()], metrics=metrics, with_interval=True, biased=biased)
        for biased in (True, False)
    ]
    for key in ("fvd[means]", "fvd-infinity[means]", "interval[means]"):
        assert both[0][key] != both[1][key]
    low, high = both[1]["interval[means]"]
    assert low < both[1]["fvd[means]"] < high


def test_no_interval_of_three_clips(caplog: pytest.LogCaptureFixture) -> None:
    clips = torch.rand(3, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    side = Side(clips, ["a", "b", "c"])
    result = score_sides(side, side, [Means()], with_interval=True)
    assert "interval[means]" not in result and "it takes 4 clips a side" in caplog.text
    with pytest.raises(ValueError, match="needs 4 vectors a side, not 3 and 9"):
        interval(torch.rand(3, 2), torch.rand(9, 2))
