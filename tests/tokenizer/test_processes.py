"""Two processes train the real stage as one does; the runs are in pair.py."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def rows(run_dir: Path) -> list[dict[str, Any]]:
    timed = ("kind", "seconds", "steps_per_second")
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timed} for row in lines]


def test_two_processes_are_one(
    tmp_path: Path,
    torchrun: Callable[[Sequence[object]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same losses and the same codebook, with parts, spread layers, both discriminators.

    Processes hold different numbers of tokens; codes die and are put onto inputs of any process
    and any part of the step.
    """
    monkeypatch.syspath_prepend(str(HERE))
    pair = importlib.import_module("pair")
    pair.write_videos(tmp_path)
    pair.run(tmp_path, "one")
    pair.run(tmp_path, "semantic-one", pair.SEMANTIC)
    torchrun([HERE / "pair.py", tmp_path])
    book = "quantizer.codebook"
    names = {"two": "one", "sharded": "one", "semantic-two": "semantic-one"}
    for name, alone in names.items():
        assert len(rows(tmp_path / name)) == 6
        for ours, theirs in zip(rows(tmp_path / name), rows(tmp_path / alone), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), name
        ours, theirs = (
            load_file(tmp_path / run / "checkpoints" / "step-00000006" / "model.safetensors")
            for run in (name, alone)
        )
        assert torch.equal(ours["quantizer.usage"], theirs["quantizer.usage"]), name
        torch.testing.assert_close(ours[book], theirs[book], rtol=0, atol=1e-4, msg=name)
    assert {"lecam", "adversary_loss"} <= rows(tmp_path / "two")[-1].keys()
    start = pair.TokenizerStage(pair.config(tmp_path, pair.PATCH, "none")).tokenizer.quantizer
    end = load_file(tmp_path / "one" / "checkpoints" / "step-00000006" / "model.safetensors")
    moved = (end[book] - start.codebook).norm(dim=1) > 0.1
    assert 4 <= int(moved.sum()) < 32
