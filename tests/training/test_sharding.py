"""Layers sharded over two processes (FSDP2, gloo) train as one process does; see sharded.py."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
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


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module sharded.py."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("sharded")


def assert_equal_runs(folder: Path, tolerance: float) -> tuple[dict, dict]:
    """Compare checkpoints and logs of one process and of two; both checkpoints."""
    one, two = tensors(folder / "one"), tensors(folder / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance, msg=name)
    for ours, theirs in zip(rows(folder / "two"), rows(folder / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=max(1e-4, 5 * tolerance), abs=1e-5)
    return one, two


Launcher = Callable[[Sequence[object]], str]


def test_muon(tmp_path: Path, torchrun: Launcher, sharded: Any) -> None:
    """Its update is computed in bf16: partial sums over rows round to other bits."""
    sharded.one(tmp_path, "one", sharded.config("muon"))
    torchrun([HERE / "sharded.py", tmp_path, "muon"])
    assert_equal_runs(tmp_path, 2e-3)


def test_two_are_one(tmp_path: Path, torchrun: Launcher, sharded: Any) -> None:
    """With averaging, clipping, accumulation, an adversary, and a stage that writes weights."""
    plain = sharded.config("adamw")
    sharded.one(tmp_path, "one", plain)
    sharded.one(tmp_path, "alone", sharded.config("adamw", sharding="fsdp"))
    torchrun([HERE / "sharded.py", tmp_path, "adamw"])
    sharded.one(tmp_path, "mixed", plain)
    one, two = assert_equal_runs(tmp_path, 1e-6)
    # to the bit: nothing to shard for one process; recomputed layers; broken off and taken up
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
