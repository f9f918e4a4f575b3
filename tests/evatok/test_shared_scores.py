"""`evatok fvd`, `compare` and `evaluate` under torchrun: processes share clips; the bits stay."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.scoring.records import read_records
from evatok.cli.app import main
from tests.evaluation.scoring.films import film
from tests.evatok.processes import children


def launch(root: Path, processes: int, words: list[str]) -> subprocess.Popen[str]:
    """Start the command by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "evatok", *words],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(root: Path, processes: int, words: list[str]) -> dict[str, Any]:
    """The JSON object that the command prints, once."""
    process = launch(root, processes, words)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "first process's work" not in errors  # all have a part in it
    (line,) = out.splitlines()
    return json.loads(line)


def alone(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The same of one process, this one, which computes with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(words) == 0
    finally:
        torch.set_num_threads(before)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    """Unequal folders with a short, a broken and a twofold video, so that shares differ in kind."""
    for number in range(7):
        film(tmp_path / "real" / f"{number}.mp4", number, 12 + number)
    for number in range(5):
        film(tmp_path / "fake" / f"{number}.mp4", 20 + number, 25)
    (tmp_path / "fake" / "again.mp4").write_bytes((tmp_path / "fake" / "3.mp4").read_bytes())
    (tmp_path / "real" / "broken.mp4").write_bytes(b"no video")
    return [str(tmp_path / side) for side in ("real", "fake")]


def test_fvd_of_two_and_three_processes(
    sides: list[str], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number and list of one process with two threads; three with a draw and a cache."""
    record = tmp_path / "record.json"
    every = "fvd,fvd-infinity,kvd,jedi,precision"
    words = ["fvd", *sides, "--size", "32", "--frames", "9", "--metrics", every, "--json"]
    one = alone([*words, "--no-cache"], capsys)
    assert told(root, 2, [*words, "--no-cache"]) == one
    assert one["fvd[nano]"] > 0 and one["num_real"] == 7
    assert list(one["damaged_real"]) == ["broken.mp4"]
    words += ["--window", "all", "--count", "6", "--record", str(record)]
    one = alone([*words, "--cache", str(tmp_path / "1.sqlite")], capsys)
    (first,) = [row for row in read_records(record) if row.metric == "fvd"]
    assert told(root, 3, [*words, "--cache", str(tmp_path / "3.sqlite")]) == one
    (again,) = [row for row in read_records(record) if row.metric == "fvd"]
    assert again.model_dump(exclude={"seconds"}) == first.model_dump(exclude={"seconds"})
    assert first.interval is not None and first.num_clips == 6


def test_statistics_of_two_processes(sides: list[str], tmp_path: Path, root: Path) -> None:
    """The first process writes the file, of the same bytes as one alone."""
    words = ["statistics", sides[0], "--size", "32", "--frames", "9", "--no-cache", "--json"]
    one, two = tmp_path / "1.npz", tmp_path / "2.npz"
    assert main([*words, "-o", str(one)]) == 0
    result = told(root, 2, [*words, "-o", str(two)])
    assert result["num_clips"] == 7 and list(result["damaged"]) == ["broken.mp4"]
    assert one.read_bytes() == two.read_bytes()


def kill_one(root: Path, words: list[str], cache: Path) -> dict[str, bytes]:
    """Kill one of two processes after it has filed features, and return what was filed."""
    process = launch(root, 2, [*words, "--cache", str(cache)])
    deadline = time.monotonic() + 200
    while not _filed(cache):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    out, _ = process.communicate()
    assert not out
    return _filed(cache)


def test_killed_and_shared_anew(
    sides: list[str], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two processes is killed; three go on with what was filed, to the bits of one."""
    cache = tmp_path / "features.sqlite"
    rng = np.random.default_rng(0)
    for side in sides:  # enough work to be caught at
        videos = rng.integers(0, 255, (60, 16, 48, 48, 3), np.uint8)
        np.savez(Path(side) / "more.npz", x=videos)
    words = ["fvd", *sides, "--size", "32", "--frames", "16", "--json"]
    filed = kill_one(root, words, cache)
    assert 0 < len(filed) < 132
    cached = [*words, "--cache", str(cache)]
    assert told(root, 3, cached) == alone([*words, "--no-cache"], capsys)
    again = _filed(cache)
    assert filed.items() <= again.items() and len(again) == 132  # two videos are one


def test_compare_of_two_processes(
    sides: list[str], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables of one, two and three processes; killed, it goes on with what was filed."""
    rng = np.random.default_rng(1)
    for number in range(4):  # a third set, of unequal videos
        film(tmp_path / "b" / f"{number}.mp4", 40 + number, 30)
    for side in (*sides, str(tmp_path / "b")):  # enough work to be caught at
        videos = rng.integers(0, 255, (30, 9, 48, 48, 3), np.uint8)
        np.savez(Path(side) / "more.npz", x=videos)
    words = ["compare", *sides, str(tmp_path / "b"), "--size", "32", "--frames", "9", "--json"]
    one = alone([*words, "--no-cache"], capsys)
    assert [row["clips"] for row in one["compared"]] == [34, 34] and one["num_real"] == 37
    assert list(one["damaged"]["real"]) == ["broken.mp4"]
    assert told(root, 2, [*words, "--no-cache"]) == one
    cache = tmp_path / "compared.sqlite"
    filed = kill_one(root, words, cache)
    assert 0 < len(filed) < 106
    assert told(root, 3, [*words, "--cache", str(cache)]) == one
    again = _filed(cache)
    assert filed.items() <= again.items() and len(again) == 106  # two videos are one


def _filed(path: Path) -> dict[str, bytes]:
    """Features by clip, as a cache has them."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as file:
        tables = file.execute("SELECT name FROM sqlite_master").fetchall()
        if ("features",) not in tables:
            return {}
        return dict(file.execute("SELECT clip, vector FROM features").fetchall())


def test_evaluate_of_three_processes(
    footage: Path, toy_dir: Path, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores, quality, tokens, fingerprint; chunks of 32 are dealt: of three one has none."""
    data = tmp_path / "data.yaml"
    data.write_text(
        f"data:\n  size: 32\n  cache_dir: {tmp_path / 'cache'}\n  sources:\n"
        f"    - {{kind: ucf101, root: {_arcade(footage, tmp_path)}}}\n"
    )
    words = ["evaluate", "arcade-rfvd", "--data", str(data), "--model", str(toy_dir)]
    words += ["--features", "nano", "--json", "--no-cache"]
    assert main(words) == 0  # a model's clips are the same bits for one number of threads
    one = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told(root, 3, words) == one and one["num_fake"] == 40


def _arcade(footage: Path, tmp_path: Path) -> Path:
    """The squares as two games, with five windows in each of the held-out files' copies."""
    from video.reading import read_frames
    from video.writing import write_video

    root, names = tmp_path / "games", ("Boxing", "Frogger")
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for name, film_name in zip(names, ("Left", "Right"), strict=True):
        (root / name).mkdir(parents=True)
        paths = [f"{name}/v_{name}_g{number:02d}_c01.mp4" for number in range(1, 5)]
        for number, path in enumerate(paths, 1):
            frames = read_frames(footage / film_name / f"v_{film_name}_g{number:02d}_c01.mp4")
            write_video(root / path, frames.repeat(5, 1, 1, 1).numpy(), 15)
            lists["test"].append(path)
        lists["train"].append(f"{paths[0]} {1 + names.index(name)}")
    (root / "classInd.txt").write_text("".join(f"{n} {x}\n" for n, x in enumerate(names, 1)))
    (root / "trainlist01.txt").write_text("\n".join(lists["train"]) + "\n")
    (root / "testlist01.txt").write_text("\n".join(lists["test"]) + "\n")
    return root
