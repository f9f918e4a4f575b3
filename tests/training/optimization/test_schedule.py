"""Learning-rate multipliers at the places that matter."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evatok.core.config import ScheduleConfig
from training.optimization.schedule import multiplier

NAMES = ("constant", "cosine", "wsd")


def test_warm_up_is_linear_and_never_zero() -> None:
    config = ScheduleConfig(name="constant", warmup_steps=4)
    assert [multiplier(config, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=10, final_ratio=0.1)
    assert multiplier(config, 10, 110) == 1
    assert multiplier(config, 60, 110) == pytest.approx(0.55)
    assert multiplier(config, 110, 110) == pytest.approx(0.1)


def test_wsd_holds_then_falls_linearly() -> None:
    config = ScheduleConfig(name="wsd", decay_fraction=0.2)
    assert all(multiplier(config, step, 100) == 1 for step in range(81))
    assert multiplier(config, 90, 100) == pytest.approx(0.5)
    assert multiplier(config, 99, 100) == pytest.approx(0.05)


@given(
    st.sampled_from(NAMES), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(1, 60)
)
def test_stays_in_range(
    name: Literal["constant", "cosine", "wsd"], warmup: int, ratio: float, decay: float, steps: int
) -> None:
    config = ScheduleConfig(name=name, warmup_steps=warmup, final_ratio=ratio, decay_fraction=decay)
    factors = [multiplier(config, step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    falling = factors[warmup:]
    assert falling == sorted(falling, reverse=True)
