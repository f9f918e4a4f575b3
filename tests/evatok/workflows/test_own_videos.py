"""From a folder of own videos to settings that fit each other."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from evatok.cli.app import main
from evatok.hub import load
from evatok.workflows.pipeline import Pipeline
from evatok.workflows.time_estimate import time_of
from video.io import write_video


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of 4 tiny videos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for label in ("left", "right"):
        for number in range(4):
            frames = np.full((9, 32, 32, 3), 20 * number, np.uint8)
            write_video(tmp_path / "v" / label / f"{number}.mp4", frames, 10)
    return tmp_path / "v"


def listed(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_settings_follow_from_one_short_file(videos: Path) -> None:
    (videos / "left" / "broken.mp4").write_bytes(b"no video")
    assert main(["init", "mine", "--data", "v", "--size", "32", "--frames", "8"]) == 0
    rows = listed(Path("mine.csv"))
    assert {(row["class"], row["split"]) for row in rows} == {
        (label, split) for label in ("left", "right") for split in ("train", "test")
    }
    assert sum(row["split"] == "test" for row in rows) == 2 and len(rows) == 8  # without broken.mp4
    lines = Path("mine.yaml").read_text().splitlines()
    assert len(lines) <= 10
    names = [step.name for step in Pipeline(Path("mine.yaml")).steps()]
    assert names == [
        "proxy", "search", "router", "final", "tokens", "generator", "export", "report"
    ]  # fmt: skip
    assert main(["init", "mine", "--data", "v"]) == 2  # nothing is written over


def test_captions_reach_the_generator(videos: Path) -> None:
    text = "path,caption\n" + "".join(f"left/{n}.mp4,ball {n} goes left\n" for n in range(4))
    Path("captions.csv").write_text(text)
    words = ["--size", "32", "--frames", "8", "--captions", "captions.csv"]
    assert main(["init", "told", "--data", "v", *words]) == 0
    assert {row["class"] for row in listed(Path("told.csv"))} == {"left"}  # others have no caption
    settings = Pipeline(Path("told.yaml")).settings
    assert settings["tokens"].captions == (Path("told.csv"),)
    assert settings["generator"].text_share > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "50"], "size 50 is not a multiple of 8 from 16 on: give 48"),
        (["--size", "128x72"], "clips are square for now"),
        (["--frames", "10"], "frames 10 is not a multiple of 4: give 8"),
        (["--levels", "8,4"], "levels [8, 4] do not rise"),
        (["--frames", "64"], "give fewer of both"),
        (["--data", "none"], "none: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    videos: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "mine", "--data", "v", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
    assert not Path("mine.yaml").exists() and not Path("mine.csv").exists()


def test_parts_are_found_in_a_run(toy_dir: Path, tmp_path: Path) -> None:
    for part in ("proxy", "router"):
        (tmp_path / "run" / part).mkdir(parents=True)
        (tmp_path / "run" / part / "model").symlink_to(toy_dir / part)
    models = load(tmp_path / "run")
    assert models.parts == ["proxy", "router"] and models.proxy.num_blocks == 4
    assert models.features.dim > 6  # the shipped network
    with pytest.raises(FileNotFoundError, match="no final in"):
        _ = models.final
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 0
    assert load(tmp_path / "out").parts == ["proxy", "router"]
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "run" / "proxy")]) == 2


def test_time_is_guessed_for_every_stage(videos: Path) -> None:
    assert main(["init", "mine", "--data", "v", "--size", "32", "--frames", "8"]) == 0
    settings = Pipeline(Path("mine.yaml")).settings
    seconds = time_of(settings, settings["proxy"], torch.device("cpu"))
    assert seconds.keys() == {"proxy", "search", "router", "final"} and min(seconds.values()) > 0
