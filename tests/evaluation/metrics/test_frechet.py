"""Fréchet distances against golden values, closed forms and themselves."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.metrics.feature_metric import FrechetDistance
from evaluation.metrics.frechet import StreamingMoments, frechet_distance
from tests.evaluation.golden import checksum, features, load_golden

CASES = (
    *("iso16", "corr32", "corr64", "full400", "uneq400", "decay400", "rankdef400", "rankdef256"),
    *("n2", "identical", "identical_def", "neardup", "tinyvar", "offset1e4", "offset1e7_f64"),
    *("dupcols", "constdims", "scaled2", "shift"),
)


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Any]]:
    return load_golden()


def test_golden_cases_are_all_here(golden: dict[str, Any]) -> None:
    assert set(golden) == set(CASES)
    for case in golden.values():
        assert checksum(*features(case)) == case["sha256"]


def check(distance: float, truth: dict[str, Any], biased: bool) -> None:
    """The agreement that the golden values ask for."""
    name = "fd_biased" if biased else "fd_unbiased"
    expected, scale = float(truth.get(f"{name}_mp50", truth[name])), truth["scale"]
    assert abs(distance - expected) <= 1e-6 * scale
    if truth["kind"] == "identical":
        assert abs(distance) <= 1e-9
    elif expected > 1e-3 * scale:
        assert distance == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_golden(golden: dict[str, Any], name: str, biased: bool) -> None:
    x, y = features(golden[name])
    check(frechet_distance(x, y, biased), golden[name], biased)
    check(frechet_distance(torch.from_numpy(y), torch.from_numpy(x), biased), golden[name], biased)


@pytest.mark.parametrize("name", CASES)
def test_golden_streaming(golden: dict[str, Any], name: str) -> None:
    """Shards in random order, empty ones too, give what the whole gives."""
    rng = random.Random(name)
    sides = []
    for side in features(golden[name]):
        shards = np.array_split(side, 5)
        states = [StreamingMoments(side.shape[1]) for _ in range(3)]
        for shard in rng.sample(shards, len(shards)):
            rng.choice(states).update(shard)
        rng.shuffle(states)
        for state in states[1:]:
            states[0].merge(state)
        assert states[0].count == len(side)
        sides.append(states[0])
    for biased in (True, False):
        check(sides[0].distance(sides[1], biased), golden[name], biased)


def draw(seed: int, count: int, dim: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return rows @ mix + offset


def by_covariances(x: Tensor, y: Tensor) -> float:
    """The formula as it is written, for sets with N > D: the root by eigenvalues."""
    s1, s2 = torch.cov(x.T, correction=0), torch.cov(y.T, correction=0)
    root = torch.linalg.eigvals(s1 @ s2).real.clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * root)


sets = st.tuples(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 12))


@settings(max_examples=40)
@given(sets, st.integers(2, 40), st.booleans())
def test_properties(first: tuple[int, int, int], count: int, biased: bool) -> None:
    """Symmetric, blind to order, to shifts and to rotation; zero for a set and itself."""
    seed, n, d = first
    x, y = draw(seed, n, d), draw(seed + 1, count, d, offset=0.5)
    distance = frechet_distance(x, y, biased)
    scale = float(x.square().sum() / n + y.square().sum() / count) + 1
    close = pytest.approx(distance, abs=1e-9 * scale)
    assert distance >= 0
    assert frechet_distance(y, x, biased) == close
    assert frechet_distance(x.flip(0), y[torch.randperm(count)], biased) == close
    assert frechet_distance(x + 1e4, y + 1e4, biased) == pytest.approx(distance, abs=1e-7 * scale)
    rotation = torch.linalg.qr(draw(seed + 2, d, d)).Q
    assert frechet_distance(x @ rotation, y @ rotation, biased) == close
    assert frechet_distance(x, x.flip(0), biased) <= 1e-9 * scale


@settings(max_examples=20)
@given(sets, st.lists(st.integers(0, 9), max_size=5), st.sampled_from([0.0, 1e3, 1e7]))
def test_streaming_is_batch(shape: tuple[int, int, int], cuts: list[int], offset: float) -> None:
    seed, n, d = shape
    x, y = draw(seed, n, d, offset), draw(seed + 1, 30, d, offset)
    state, other = StreamingMoments(d), StreamingMoments(d)
    for rows in x.tensor_split(sorted(min(cut, n) for cut in cuts)):
        state.update(rows)
    other.update(y)
    scale = float(x.var(0).sum() + y.var(0).sum()) + 1
    assert state.distance(other) == pytest.approx(frechet_distance(x, y), abs=1e-8 * scale)
    moments = state.compute(biased=False)
    torch.testing.assert_close(moments.factor.T @ moments.factor, torch.cov(x.T).reshape(d, d))


def test_written_formula() -> None:
    x, y = draw(1, 200, 8), draw(2, 150, 8, offset=1.0)
    assert frechet_distance(x, y) == pytest.approx(by_covariances(x, y), rel=1e-9)


@pytest.mark.parametrize("make", [lambda x: x.float(), lambda x: x.numpy(), lambda x: x.half()])
def test_types(make: Any) -> None:
    x, y = draw(1, 50, 4), draw(2, 50, 4)
    assert isinstance(frechet_distance(make(x), make(y)), float)
    assert frechet_distance(make(x), make(y)) == pytest.approx(frechet_distance(x, y), rel=0.01)


def test_refusals() -> None:
    x = draw(1, 20, 4)
    broken = x.clone()
    broken[13, 2] = math.nan
    with pytest.raises(ValueError, match="the second set: row 13 is NaN"):
        frechet_distance(x, broken)
    with pytest.raises(ValueError, match="first set has 1 rows"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match=r"shape \(20,\)"):
        frechet_distance(x[:, 0], x)
    with pytest.raises(ValueError, match="4 and 3 features"):
        frechet_distance(x, x[:, :3])
    state = StreamingMoments(4)
    with pytest.raises(ValueError, match="row 13"):
        state.update(broken)
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        state.update(x[:, :3])
    with pytest.raises(ValueError, match="4 and 5"):
        state.merge(StreamingMoments(5))
    state.update(x[:1])
    with pytest.raises(ValueError, match="1 vectors seen"):
        state.compute()


def test_few_vectors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        frechet_distance(draw(1, 20, 4), draw(2, 20, 4))
        assert not caplog.records
        frechet_distance(draw(1, 4, 4), draw(2, 20, 4))
    assert "4 vectors of 4 features" in caplog.text


# The metric ------------------------------------------------------------------------------------


def both_sides() -> tuple[Tensor, Tensor]:
    return draw(1, 30, 6).float(), draw(2, 25, 6, offset=0.3).float()


def shards(metric: FrechetDistance, rows: list[int], x: Tensor, real: bool) -> None:
    for part in (rows[:4], rows[4:]):
        metric.update(x[part], torch.tensor(part, dtype=torch.int64), real=real)


def test_metric_is_the_distance_bit_for_bit_in_any_order() -> None:
    x, y = both_sides()
    rng = random.Random(0)
    for _ in range(5):
        metric = FrechetDistance(6)
        rows, others = list(range(30)), list(range(25))
        # what a sampler's padding does: some clips come twice
        rows, others = rows + rng.sample(rows, 3), others + rng.sample(others, 7)
        rng.shuffle(rows)
        rng.shuffle(others)
        shards(metric, rows, x, real=True)
        shards(metric, others, y, real=False)
        assert float(metric.compute()) == frechet_distance(x, y)
        assert metric.compute().dtype == torch.float64


def test_copies_with_other_last_bits_do_not_depend_on_order() -> None:
    x, y = both_sides()
    nearly, names = x * (1 + 1e-5), torch.arange(30)
    values = set()
    for parts in ((x, nearly, x), (nearly, x, nearly)):
        metric = FrechetDistance(6)
        for part in parts:
            metric.update(part, names, real=True)
        metric.update(y, torch.arange(25), real=False)
        values.add(float(metric.compute()))
    assert len(values) == 1


def test_metric_merges_and_resets() -> None:
    x, y = both_sides()
    metric, other = FrechetDistance(6, biased=False), FrechetDistance(6, biased=False)
    metric.update(x[:20], torch.arange(20), real=True)
    other.update(x[18:], torch.arange(18, 30), real=True)
    other.update(y, torch.arange(25), real=False)
    metric.merge_state(other)
    assert float(metric.compute()) == frechet_distance(x, y, biased=False)
    metric.reset()
    metric.update(x, torch.arange(30), real=True)
    with pytest.raises(ValueError, match="0 rows"):
        metric.compute()


def test_metric_refuses() -> None:
    x, _ = both_sides()
    metric = FrechetDistance(6)
    broken = x.clone()
    broken[3, 0] = math.inf
    with pytest.raises(ValueError, match="real side: id 103 is NaN"):
        metric.update(broken, torch.arange(100, 130), real=True)
    with pytest.raises(ValueError, match=r"with ids \(N,\)"):
        metric.update(x, torch.arange(29), real=True)
    with pytest.raises(ValueError, match="float32"):
        metric.set_dtype(torch.float16)
    metric.update(x, torch.arange(30) % 28, real=True)
    metric.update(x, torch.arange(30), real=False)
    with pytest.raises(ValueError, match="id 0 was given to clips with different features"):
        metric.compute()


def test_metric_gathers() -> None:
    """What the second process has comes in, and one that saw nothing of a side can take part."""
    x, y = both_sides()
    second = FrechetDistance(6)
    second.update(x[15:], torch.arange(15, 30), real=True)
    theirs = iter([*second._joined("real"), *second._joined("fake")])
    first = FrechetDistance(
        6,
        dist_sync_fn=lambda mine, group: [mine, next(theirs)],
        distributed_available_fn=lambda: True,
    )
    first.update(x[:18], torch.arange(18), real=True)
    first.update(y, torch.arange(25), real=False)
    assert float(first.compute()) == frechet_distance(x, y)
    assert first.real_ids[0].shape == (18,)  # what it saw itself is as before
