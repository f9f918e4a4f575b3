"""Runs that are really killed, and runs of two processes; the work is in driver.py."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TIMED = ("seconds", "steps_per_second")

HERE = Path(__file__).parent


def drive(what: str, folder: Path, root: Path) -> dict[str, Any]:
    driver = Path(__file__).with_name("driver.py")
    run = subprocess.run(
        [sys.executable, str(driver), what, str(folder)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def files(run_dir: Path, step: int, count: int = 3) -> dict[str, bytes]:
    """Bytes of every weight file of a checkpoint."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(found) == count
    return found


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in TIMED} for row in lines]


@pytest.mark.parametrize("what, count", [("kills", 3), ("duels", 5)])
def test_kill_at_any_moment(tmp_path: Path, root: Path, what: str, count: int) -> None:
    """Killed at random moments and between any two writes of a checkpoint: the same bits."""
    told = drive(what, tmp_path, root)
    assert told["random_deaths"] >= 2
    whole = files(tmp_path / "whole", 60, count)
    for run in ("killed", "saving"):
        assert files(tmp_path / run, 60, count) == whole
        assert rows(tmp_path / run) == rows(tmp_path / "whole")
        assert sorted(p.name for p in (tmp_path / run / "images").iterdir()) == sorted(
            p.name for p in (tmp_path / "whole" / "images").iterdir()
        )
    if what == "kills":
        assert files(tmp_path / "worker", 20) == files(tmp_path / "alone", 20)


def test_two_processes_are_one(
    tmp_path: Path, torchrun: Callable[[Sequence[object]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows cut 5 : 3 over two processes, or an adversary's step: as with the whole batch.

    A validation that takes longer than a collective may does not end the run.
    """
    monkeypatch.syspath_prepend(str(HERE))
    driver = importlib.import_module("driver")
    torchrun([HERE / "driver.py", "two", tmp_path])
    for what in ("ranks", "duel-ranks"):
        driver.together(tmp_path, what)
        folder = tmp_path / what
        first, second = (load_file(folder / f"world2-rank{rank}.safetensors") for rank in (0, 1))
        whole = load_file(folder / "world1-rank0.safetensors")
        for name, value in whole.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6, msg=name)
        ours, theirs = rows(folder / "world2"), rows(folder / "world1")
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    assert rows(tmp_path / "slow" / "world2")[-1]["step"] == 3
