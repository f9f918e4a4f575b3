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
    """The same losses on both sides, with LeCAM's means, an adaptive weight, spread layers.

    Processes hold different numbers of tokens, and the entropy term is on; both discriminators.
    """
    driver = Path(__file__).with_name("duel.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    logs = {}
    pairs = {"two": "one", "spread": "one", "semantic-two": "semantic-one"}
    for run in {*pairs, *pairs.values()}:
        lines = (tmp_path / run / "log.jsonl").read_text().splitlines()
        logs[run] = [json.loads(line) for line in lines]
        for row in logs[run]:
            del row["kind"], row["seconds"], row["steps_per_second"]
    assert len(logs["one"]) == 6
    assert {"lecam", "adaptive_weight", "adversary_loss"} <= logs["one"][-1].keys()
    for run, alone in pairs.items():
        for ours, theirs in zip(logs[run], logs[alone], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), run
