"""What every metric of features must do: several processes, the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from evaluation.metrics.feature_metric import (
    CoverageMetric,
    FeatureMetric,
    FrechetDistance,
    JediDistance,
    KernelDistance,
)

METRICS: list[type[FeatureMetric]] = [
    FrechetDistance,
    KernelDistance,
    JediDistance,
    CoverageMetric,
]


def test_two_processes_give_the_same_bits(tmp_path: Path, root: Path) -> None:
    """Uneven shards, padding copies, and a process that saw nothing of one side."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 6, generator=generator), torch.randn(25, 6, generator=generator) + 0.5
    torch.save((x, y), tmp_path / "sides.pt")
    command = [sys.executable, "-m", "tests.evaluation.metrics.two_processes", str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    expected = []
    for kind in METRICS:
        metric = kind(6)
        metric.update(x, torch.arange(30), real=True)
        metric.update(y, torch.arange(25), real=False)
        expected.append(repr(metric.compute()))
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text().split("\n") == expected
