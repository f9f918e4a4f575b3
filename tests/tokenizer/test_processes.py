"""Two processes (gloo) with a tokenizer and a discriminator; the work is in duel.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
def test_two_processes_are_one(tmp_path: Path, root: Path) -> None:
    """The same losses on both sides, with LeCAM's means and an adaptive weight."""
    driver = Path(__file__).with_name("duel.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / f"world{n}" / "log.jsonl").read_text().splitlines() for n in (1, 2)]
    one, two = ([json.loads(line) for line in log] for log in logs)
    assert len(one) == 6 and "lecam" in one[-1] and "adaptive_weight" in one[-1]
    for ours, theirs in zip(two, one, strict=True):
        for row in (ours, theirs):
            del row["kind"], row["seconds"], row["steps_per_second"]
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
