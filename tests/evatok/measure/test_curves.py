"""Curves of quality against cost."""

from __future__ import annotations

import pytest
import torch

from evatok.measure.curves import THRESHOLDS, thresholds_of


def test_thresholds_of_few_and_many_qualities() -> None:
    few = torch.randn(7, 81, generator=torch.Generator().manual_seed(0))
    expected = few.double().quantile(torch.tensor(THRESHOLDS).double()).tolist()
    assert thresholds_of(few) == pytest.approx(expected, rel=1e-6)
    many = torch.arange(2**24 + 1, dtype=torch.float32)[None]  # more than torch takes
    wanted = [share * 2**24 for share in THRESHOLDS]
    assert thresholds_of(many) == pytest.approx(wanted, abs=1)
