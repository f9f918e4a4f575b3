"""Layers spread over two processes (FSDP2, gloo) train as one process does; see spread.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")

UNCOMPARED = ("kind", "seconds", "steps_per_second")


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in UNCOMPARED} for row in lines]


def tensors(run_dir: Path) -> dict[str, Tensor]:
    """Everything in the last checkpoint."""
    folder = run_dir / "checkpoints" / "step-00000008"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 5
    return {f"{f.stem}/{name}": value for f in files for name, value in load_file(f).items()}


def drive(folder: Path, root: Path, optimizer: str) -> None:
    driver = Path(__file__).with_name("spread.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(folder), optimizer],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def assert_equal_runs(folder: Path, tolerance: float) -> tuple[dict, dict]:
    """Compare checkpoints and logs of one process and of two; both checkpoints."""
    one, two = tensors(folder / "one"), tensors(folder / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance, msg=name)
    for ours, theirs in zip(rows(folder / "two"), rows(folder / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=max(1e-4, 5 * tolerance), abs=1e-5)
    return one, two


def test_muon(tmp_path: Path, root: Path) -> None:
    """Its update is computed in bf16: partial sums over rows round to other bits."""
    drive(tmp_path, root, "muon")
    assert_equal_runs(tmp_path, 2e-3)


def test_two_are_one(tmp_path: Path, root: Path) -> None:
    """With averaging, clipping, accumulation, an adversary, and a stage that writes weights."""
    drive(tmp_path, root, "adamw")
    one, two = assert_equal_runs(tmp_path, 1e-6)
    # to the bit: nothing to spread for one process; recomputed layers; broken off and taken up
    for run, like in (("alone", one), ("less", two), ("cut", two)):
        found = tensors(tmp_path / run)
        assert all(torch.equal(value, found[name]) for name, value in like.items()), run
    # begun by two and finished by one
    for name, value in tensors(tmp_path / "mixed").items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=1e-6, msg=name)
    # every process returns the whole average, and held part of the weights
    results = [load_file(tmp_path / f"two-rank{rank}.safetensors") for rank in (0, 1)]
    for result in results:
        assert all(torch.equal(two[f"ema/{name}"], value) for name, value in result.items())
    held = {
        run: sum(json.loads(path.read_text()) for path in tmp_path.glob(f"{run}-rank*.json"))
        for run in ("one", "two")
    }
    whole = sum(value.numel() for n, value in results[0].items() if not n.startswith("layers."))
    assert held["two"] == held["one"] + whole - 1  # twice what is no layer; `count` is a buffer
