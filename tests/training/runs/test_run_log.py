"""Rows, pictures and progress."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.runs.run_log import ProgressDisplay, RunLog, read_rows, truncate


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_rows_after_the_checkpoint_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.write("train", step, {"loss": step / 2})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while it wrote
    later = time.time() + 2  # TensorBoard orders files by the second in which they were begun
    monkeypatch.setattr(time, "time", lambda: later)
    with RunLog(tmp_path, 3) as log:
        log.write("train", 4, {"loss": float("nan")})
        log.sync()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert rows(tmp_path)[2:] == [
        {"kind": "train", "step": 3, "loss": 1.5},
        {"kind": "train", "step": 4, "loss": None},
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]


def test_lines_that_are_no_rows_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    good = [b'{"kind": "train", "step": 1, "loss": 2.0}', b'{"kind": "train", "step": 5}']
    bad = [b"", b"[1]", b'{"kind": "train"}', b'{"step": "x", "kind": 1}', b"\xff\x00", b"{" * 9000]
    path.write_bytes(b"\n".join([good[0], *bad, good[1]]) + b"\n")
    assert read_rows(path) == [json.loads(line) for line in good]
    assert "6 lines are no rows, left out: the first is 2" in caplog.text
    truncate(path, 4)
    assert path.read_bytes() == good[0] + b"\n"


def test_truncate_without_a_file(tmp_path: Path) -> None:
    truncate(tmp_path / "log.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_pictures(tmp_path: Path) -> None:
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    with RunLog(tmp_path, 0) as log:
        log.pictures(12, {"held out/1": image})
        with pytest.raises(ValueError, match="'grey' should be uint8"):
            log.pictures(12, {"grey": image[..., 0]})
    files = list((tmp_path / "images").iterdir())
    assert [file.name for file in files] == ["held-out-1-00000012.png"]
    assert np.array_equal(imageio.imread(files[0]), image)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay("toy", 0, 100, shown=True)
    display.update(50, 2.5, {"loss": 0.125})
    display.close()
    line = capsys.readouterr().err
    assert line.startswith("toy: step 50/100  2.5 steps/s  0:00:0")
    assert "left  loss 0.125" in line
    hidden = ProgressDisplay("toy", 0, 100, shown=False)
    hidden.update(50, 2.5, {"loss": 0.125})
    assert not capsys.readouterr().err


def test_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    display = ProgressDisplay("toy [x]", 0, 100, shown=True)
    display.update(50, 2.5, {"loss": 0.125})
    display.log("hello")
    display.close()
    text = capsys.readouterr().err
    assert "50/100" in text and "toy [x]" in text and "hello" in text
