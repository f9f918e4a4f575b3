"""Checkpoints: whole or not there, and damage is noticed."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from training.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest,
    load,
    save,
)


def make(step: int, ema: bool = True) -> Checkpoint:
    weights = {"w": torch.full((2, 3), float(step)), "count": torch.tensor(step)}
    return Checkpoint(
        step=step,
        model=weights,
        ema={"w": weights["w"] + 0.5, "count": weights["count"]} if ema else {},
        optimizer={"w::exp_avg": torch.ones(2, 3), "w::step": torch.tensor(3.0)},
        state={"metrics": {"psnr": 0.1}},
    )


def test_round_trip(tmp_path: Path) -> None:
    saved = make(7)
    path = save(tmp_path, saved, keep=2)
    assert path == latest(tmp_path) == tmp_path / "checkpoints" / "step-00000007"
    read = load(path)
    assert read.step == 7 and read.state["metrics"] == {"psnr": 0.1}
    for part in ("model", "ema", "optimizer"):
        ours, theirs = getattr(saved, part), getattr(read, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_others_may_read_it(tmp_path: Path) -> None:
    """As the umask has it; safetensors itself writes files for the owner alone."""
    old = os.umask(0o022)
    try:
        folder = save(tmp_path, make(1), keep=1)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 123_456_789):
        save(tmp_path, make(step), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-123456789"]
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step-123456789"


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "b": base, "t": base.T, "row": base[1]}
    read = load(save(tmp_path, Checkpoint(step=1, model=tensors), keep=1))
    assert all(torch.equal(read.model[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no state", "half state"])
def test_damage_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = save(tmp_path, make(1), keep=5)
    bad = save(tmp_path, make(2), keep=5)
    file = bad / "ema.safetensors"
    data = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "delete":
        file.unlink()
    elif damage == "no state":
        (bad / "state.json").unlink()
    else:
        (bad / "state.json").write_text((bad / "state.json").read_text()[:20])
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == good
    assert "step-00000002: damaged" in caplog.text
    with pytest.raises(CheckpointError, match="damaged"):
        load(bad)
    save(tmp_path, make(2), keep=5)  # takes the damaged one's place
    assert load(bad).step == 2


def test_a_damaged_one_does_not_count_as_the_newest(tmp_path: Path) -> None:
    save(tmp_path, make(1), keep=5)
    (save(tmp_path, make(9), keep=5) / "state.json").unlink()
    path = save(tmp_path, make(2), keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [path.name]


def test_unfinished_is_passed_over_and_cleared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partial = tmp_path / "checkpoints" / ".step-00000005.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) is None
    assert "unfinished" in caplog.text
    save(tmp_path, make(5), keep=1)
    assert not partial.exists() and load(tmp_path / "checkpoints" / "step-00000005").step == 5


def test_other_format(tmp_path: Path) -> None:
    path = save(tmp_path, make(1), keep=1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": 7},
        {"step": "2"},
        {"step": -1},
        {"seconds": None},
        {"seconds": float("nan")},
        {"seconds": "long"},
        {"metrics": []},
        {"metrics": None},
        {"sums": {"loss": 3}},
        {"sums": None},
        {"files": {}},
        {"files": None},
        {"files": {"../../model.safetensors": "0"}},
    ],
)
def test_a_damaged_state_is_passed_over(
    change: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that is gone (None) or wrong: the run goes on from the checkpoint before."""
    good = save(tmp_path, make(1), keep=5)
    file = save(tmp_path, make(2), keep=5) / "state.json"
    state = json.loads(file.read_text()) | change
    for key in [key for key, value in change.items() if value is None]:
        del state[key]
    file.write_text(json.dumps(state))
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == good
    assert "damaged checkpoint: state.json" in caplog.text and "ignored" in caplog.text


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe", b"[" * 10**5])
def test_a_state_that_is_no_object(content: bytes, tmp_path: Path) -> None:
    path = save(tmp_path, make(1), keep=5)
    (path / "state.json").write_bytes(content)
    assert latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load(path)


def test_empty(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
