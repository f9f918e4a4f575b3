"""Every long job on toy files: what it is called, and what it must leave, however it was disturbed.

Used by `kills` (killed at random moments) and `disk` (no room for what it writes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kinds import CLASSES, FVD

# Logs tell times, and a cache its order of rows.
PASSING = ("log.jsonl", ".lock", "tensorboard", ".sqlite", "prepared.json")


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        words: of it.
        makes: the folder or file that it makes.
        needs: what is copied beside it.
        passing: names that hold times and are not compared, beside `PASSING`.
    """

    words: Sequence[str]
    makes: str
    needs: tuple[str, ...]
    passing: tuple[str, ...] = ()

    def result(self, folder: Path) -> dict[str, str]:
        """SHA-256 of every file that it made, by path."""
        skipped = (*PASSING, *self.passing)
        found = folder / self.makes
        files = sorted(found.rglob("*")) if found.is_dir() else [found]
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file() and not any(word in str(file) for word in skipped)
        }


def _train(stage: str, steps: int) -> list[str]:
    every = ["train.validate_every=5", "train.save_every=2", "train.log_every=5"]
    return ["train", f"toy/{stage}.yaml", "--run-dir", "made", f"train.steps={steps}", *every]


TRAINED = ("toy", "squares", "run/cache")
JOBS = {
    # state.json of a checkpoint holds seconds and SHA-256 of files that are compared themselves
    "train proxy": Job(_train("proxy", 30), "made", TRAINED, ("state.json",)),
    "train compiled proxy": Job(
        [*_train("proxy", 12), "train.compile=true"], "made", TRAINED, ("state.json",)
    ),
    "train router": Job(
        _train("router", 30), "made", (*TRAINED, "run/search", "run/proxy/model"), ("state.json",)
    ),
    "train generator": Job(
        _train("generator", 30),
        "made",
        ("toy", "squares", "run/tokens", "run/final-wide/model"),
        ("state.json",),
    ),
    "clip cache": Job(
        ["train", "toy/proxy.yaml", "--run-dir", "made", "train.steps=1", "data.size=32"],
        "run/cache",
        ("toy", "squares"),
    ),
    "search": Job(
        ["search", "toy/search.yaml", "--run-dir", "made", "clips=120"],
        "made",
        (*TRAINED, "run/proxy/model"),
    ),
    "tokens": Job(
        ["tokens", "toy/tokens.yaml", "--run-dir", "made", "windows=30"],
        "made",
        (*TRAINED, "run/final-wide/model", "run/router/model", "run/text"),
    ),
    "sample mp4": Job(
        ["sample", "-o", "made", "-n", "12", "--chunk", "2", "--model", "run/export"],
        "made",
        ("run/export",),
    ),
    "sample npz": Job(
        ["sample", "-o", "made", "-n", "12", "--chunk", "2", "--model", "run/export",
         "--format", "npz"],
        "made",
        ("run/export",),
    ),
    "data": Job(
        ["data", "ucf101", "squares", "--out", "made", "--workers", "1", "--size", "32"],
        "made",
        ("squares",),
    ),
    "data by two workers": Job(
        ["data", "ucf101", "squares", "--out", "made", "--workers", "2", "--size", "32"],
        "made",
        ("squares",),
    ),
    "search by two processes": Job(
        ["search", "toy/search.yaml", "--run-dir", "made", "clips=60", "processes=2"],
        "made",
        (*TRAINED, "run/proxy/model"),
    ),
    "fvd": Job(
        ["fvd", *CLASSES, *FVD, "--window", "all", "--cache", "f.sqlite", "--record", "made.json"],
        "made.json",
        ("squares", "run/export"),
    ),
    "text": Job(
        ["text", "train", "toy/text.yaml", "-o", "made"],
        "made",
        ("toy", "squares", "run/cache"),
    ),
    "pipeline": Job(
        ["pipeline", "toy", "--until", "router", "--force"],
        "run",
        ("toy", "squares"),
        ("state.json", "steps/", ".svg"),
    ),
}  # fmt: skip
if find_spec("ale_py") is not None:
    JOBS["arcade"] = Job(
        ["arcade", "made", "--train-clips", "3", "--test-clips", "1", "--frames", "16", "--size",
         "32", "--games", "pong,breakout", "--workers", "2"],
        "made",
        (),
    )  # fmt: skip
