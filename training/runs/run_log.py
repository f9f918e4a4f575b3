"""Log of a run: log.jsonl, TensorBoard files, pictures, and lines on a terminal.

`log.jsonl` has one row for each logged step: {"kind": "train" or "validation", "step", ...}. Rows
of a training step hold means since the row before. A run which goes on from a checkpoint first
drops the rows that lie behind it, so that no step is there twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v3 as imageio
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from evatok.core.errors import EvatokError
from evatok.core.extras import extra
from evatok.core.files import atomic_file, naming, write_text
from evatok.core.loading.records import RecordError, parse_json
from training.runs.trackers import Trackers

with extra("train"):
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class RunLog:
    """The files of one run; a context manager.

    Args:
        run_dir: folder of the run.
        step: steps that the run has taken already; later rows are dropped.
        trackers: get every row too.
    """

    def __init__(self, run_dir: Path, step: int, trackers: Trackers | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.trackers = trackers
        self.images_dir = run_dir / "images"
        self.path = run_dir / "log.jsonl"
        truncate(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")
        # purge_step makes TensorBoard forget what an interrupted run wrote from there on
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        self.board.close()
        if self.trackers is not None:
            self.trackers.close()

    def write(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Add a row. Numbers that JSON does not have (nan, inf) are written as null."""
        row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with naming(self.path):
            self.file.write(json.dumps({"kind": kind, "step": step} | row, allow_nan=False) + "\n")
            self.file.flush()
        for name, value in scalars.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.trackers is not None:
            self.trackers.log(kind, step, scalars)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show uint8 (H, W, 3) pictures in TensorBoard and write them to images/ as PNG files."""
        for name, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise EvatokError(
                    f"image {name!r} should be uint8 (H, W, 3), not {image.dtype} {image.shape}"
                )
            self.images_dir.mkdir(exist_ok=True)
            file = self.images_dir / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{step:08d}.png"
            with atomic_file(file) as partial:
                imageio.imwrite(partial, image)
            self.board.add_image(f"validation/{name}", image, step, dataformats="HWC")

    def sync(self) -> None:
        """Force all rows to disk, before a checkpoint that relies on them."""
        os.fsync(self.file.fileno())
        self.board.flush()


def truncate(path: Path, step: int) -> None:
    """Drop rows of log.jsonl after a step, and lines that are no rows, such as a torn last one."""
    if not path.is_file():
        return
    kept = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of log.jsonl; lines that are no rows are left out, with a warning."""
    rows, lost = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, f"{path}:{number}", "")
        except RecordError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int) and "kind" in row:
            rows.append(row)
        else:
            lost.append(number)
    if lost and lost != [len(lines)]:  # a torn last line is what a killed run leaves
        log.warning("%s: %d lines are no rows, left out: the first is %d", path, len(lost), lost[0])
    return rows


class ProgressDisplay:
    """Steps, speed, time left and loss terms: a bar on a terminal, plain lines elsewhere.

    Args:
        title: shown in front, the name of the run.
        step: steps taken already.
        steps: steps in all.
        shown: False = print nothing (processes other than the first).
    """

    def __init__(self, title: str, step: int, steps: int, shown: bool) -> None:
        self.title, self.first, self.steps, self.shown = title, step, steps, shown
        self.start = time.perf_counter()
        self.bar: Progress | None = None
        if shown and sys.stderr.isatty():
            bar = Progress(
                TextColumn(title, markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(stderr=True, highlight=False),
            )
            self.task = bar.add_task(title, total=steps, completed=step, text="")
            bar.start()
            self.bar = bar

    def update(self, step: int, rate: float, terms: Mapping[str, float]) -> None:
        """Show how far the run is; `rate` in steps/s."""
        if not self.shown:
            return
        # over the whole process, so that validation and saving count
        spent = (time.perf_counter() - self.start) / max(1, step - self.first)
        left = timedelta(seconds=round(spent * (self.steps - step)))
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        text = f"{rate:.3g} steps/s  {left} left  {numbers}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, text=text)
        else:
            self.log(f"step {step}/{self.steps}  {text}")

    def log(self, text: str) -> None:
        """Print one line."""
        if not self.shown:
            return
        if self.bar is not None:
            self.bar.console.print(text, markup=False)
        else:
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()
