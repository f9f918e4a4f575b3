"""No command writes over what it reads: refused in one line, before anything is written."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evatok.cli.app import main
from evatok.core.config import load_config
from evatok.core.paths import paths_in
from evatok.report.demo import MANIFEST
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]

COMMANDS = [
    "reconstruct {here}/set/clip.mp4 -o {here}/set --model {toy}",
    "reconstruct {here}/set/clip.mp4 -o {here}/alias --model {toy}",
    "reconstruct {here}/set/clip.mp4 -o {here}/hard --model {toy}",
    "reconstruct {here}/set/other.mp4 {here}/set/clip.mp4 -o {here}/link --model {toy}",
    "predict {here}/set/clip.mp4 -o {here}/predicted -n 1 --model {toy}",
    "sample --class Left -n 1 -o {here}/sampled --model {here}/models",
    "sample --class Left -n 1 -o {here}/models --model {here}/models",
    "data ucf101 {here}/ucf --out {here}/ucf",
    "data ucf101 {here}/ucf --out {here}/ucf/small",
    "data ucf101 {here}/ucf --out {here}/ucf-alias",
    "fvd {here}/set {here}/hard --record {here}/set/clip.mp4 --model {toy} --no-cache",
    "fvd {here}/set {here}/hard --record {here}/r.json --cache {here}/r.json --model {toy}",
    "evaluate arcade-rfvd --data {here}/my/data.yaml --record {here}/my/data.yaml --model {toy}",
    "leaderboard add {here}/r.json --board {here}/my/../r.json",
    "train {here}/my/config.yaml --run-dir {here}/my",
    "train {here}/my/final.yaml start_from={here}/run/model start_from_data=false "
    "--run-dir {here}/run",
    "search {here}/my/search.yaml model={here}/models/proxy --run-dir {here}/models/proxy",
    "tokens {here}/my/tokens.yaml tokenizer={here}/models/final --run-dir {here}/models/final",
    "curves {here}/my/search.yaml --tables {here}/tables -o {here}/tables --model {toy}",
    "demo -o {here}/models --model {here}/models",
    "text train {here}/captions.txt -o {here}/captions.txt",
    "pipeline {here}/my",
]


@pytest.fixture
def here(tmp_path: Path, root: Path, toy_dir: Path, footage: Path, square: Square) -> Path:
    """A folder with one of everything that commands read."""
    for seed, name in enumerate(("clip", "other")):
        write_video(tmp_path / "set" / f"{name}.mp4", square(20, 32, 32, seed), 10)
    clip = tmp_path / "set" / "clip.mp4"
    for folder in ("hard", "link", "predicted", "sampled", "tables", "run/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "set")
    (tmp_path / "hard" / "clip.mp4").hardlink_to(clip)
    (tmp_path / "link" / "clip.mp4").symlink_to(clip)
    (tmp_path / "predicted" / "clip-0-000.mp4").symlink_to(clip)
    shutil.copytree(toy_dir, tmp_path / "models")
    weights = tmp_path / "models" / "final" / "model.safetensors"
    (tmp_path / "sampled" / "Left-0-000.mp4").hardlink_to(weights)
    shutil.copytree(footage, tmp_path / "ucf")
    (tmp_path / "ucf-alias").symlink_to(tmp_path / "ucf")
    (tmp_path / "r.json").write_text("[]")
    (tmp_path / "captions.txt").write_text("a bright clip\n")
    shutil.copytree(root / "configs" / "nano", tmp_path / "my")
    shutil.copy(tmp_path / "my" / "proxy.yaml", tmp_path / "my" / "config.yaml")
    pipeline = tmp_path / "my" / "pipeline.yaml"
    pipeline.write_text(re.sub("run_dir: .*", f"run_dir: {tmp_path}/my", pipeline.read_text()))
    for path in (tmp_path / "my").glob("*.yaml"):
        path.write_text(path.read_text().replace("runs/nano/", f"{tmp_path}/my/"))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("words", COMMANDS)
def test_inputs_are_not_written_over(
    words: str, here: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(here)
    status = main(words.format(here=here, toy=toy_dir).split())
    out, err = capsys.readouterr()
    assert status == 2 and out == "", err
    lines = [line for line in err.splitlines() if line.startswith("evatok: ")]
    assert len(lines) == 1 and "would be written over the input" in lines[0], err
    assert contents(here) == before


def test_settings_name_their_inputs(here: Path) -> None:
    from evatok.workflows.search import SearchConfig

    found = paths_in(load_config(SearchConfig, here / "my" / "search.yaml"))
    assert here / "my" / "proxy" / "model" in found and here / "my" / "arcade" in found
    assert not any("cache" in path.name for path in found)


def test_demo_removes_only_pages_of_its_own(here: Path) -> None:
    """Its folder of samples is made anew, but not one that somebody else has filled."""
    from evatok.core.errors import EvatokError
    from evatok.hub import load
    from evatok.report.demo import Demo, DemoConfig
    from evatok.report.page import Page

    output = here / "demo"
    mine = output / "videos" / "samples" / "Left-7-000.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_text("somebody's")
    demo = Demo(DemoConfig(), load(here / "models"), output, lambda text: None)
    with pytest.raises(EvatokError, match=MANIFEST):
        demo.samples(Page("", ""))
    assert mine.read_text() == "somebody's"


def test_a_record_is_checked_before_the_work(
    here: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr("evaluation.scoring.score.score_folders", work)
    (here / "file").write_text("")
    words = ["fvd", str(here / "set"), str(here / "hard"), "--model", str(toy_dir), "--record"]
    for place in ("run", "file/record.json"):
        assert main([*words, str(here / place)]) == 2
        err = capsys.readouterr().err
        assert str(here / place.split("/")[0]) in err and err.count("\n") == 1


def test_one_bad_file_among_good_ones(
    here: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = here / "bad.mp4"
    bad.write_text("no video")
    names = [here / "set" / "clip.mp4", bad, here / "set" / "other.mp4", here / "set", here / "no"]
    words = ["reconstruct", *map(str, names), "-o", str(here / "out"), "--model", str(toy_dir)]
    assert main([*words, "--assignment", "uniform:1", "--json"]) == 2
    out, err = capsys.readouterr()
    assert '"num_files": 2' in out
    line = err.splitlines()[-1]
    assert line.startswith("evatok: 3 of 5 files could not be read: ") and "bad.mp4" in line
    assert "set: is a folder, not a video" in line and "no: no such file" in line
    assert sorted(p.name for p in (here / "out").iterdir()) == ["clip.mp4", "other.mp4"]


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("sample --class Left -n 1 -o {here}/out --model {toy}", "out/Left-0-000.mp4"),
        ("sample -n 1 --format npz -o {here}/out --model {toy}", "out/samples-00000.npz"),
        ("reconstruct {here}/set/clip.mp4 -o {here}/out --model {toy}", "out/clip.mp4"),
        ("predict {here}/set/clip.mp4 -n 1 -o {here}/out --model {toy}", "out/clip-0-000.mp4"),
        ("text train {here}/captions.txt -o {here}/out/text", "out/text"),
    ],
)
def test_a_full_disk_is_one_line_and_keeps_what_was_there(
    words: str, file: str, here: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files plays the full disk."""
    (here / "captions.txt").write_text("a bright clip of left\na dark clip of right\n" * 20)
    command = words.format(here=here, toy=toy_dir).split()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        status = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and last.startswith(f"evatok: {here / file}: File too large (")
    assert not list(here.rglob("*partial*")) and not (here / file).exists()
    assert main(command) == 0
    assert (here / file).exists()
