"""From a folder of own videos to settings that fit each other."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evatok.cli.app import main
from evatok.hub import load
from evatok.plan.info import describe
from evatok.workflows.own.time_estimate import Clock, in_words, time_of
from evatok.workflows.pipeline import Pipeline
from tokenizer.model import VideoTokenizer
from video.writing import write_video


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
    assert len(lines) <= 11
    names = [step.name for step in Pipeline(Path("mine.yaml")).steps()]
    assert names == [
        "proxy", "search", "router", "preference", "final",
        "tokens", "generator", "export", "report",
    ]  # fmt: skip
    assert main(["init", "mine", "--data", "v"]) == 2  # nothing is written over


def test_the_short_file_is_described_and_not_planned(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("captions.csv").write_text("path,caption\nleft/0.mp4,a ball\nleft/1.mp4,a box\n")
    assert main(["init", "mine", "--data", "v", "--size", "32", "--frames", "8"]) == 0
    assert main(["init", "told", "--data", "v", "--captions", "captions.csv"]) == 0
    for name, text in (("mine", 0), ("told", 512)):
        told = describe(f"{name}.yaml")
        settings = Pipeline(Path(f"{name}.yaml")).settings
        assert [row["part"] for row in told["parts"]] == [
            "proxy", "router", "preference", "final", "generator",
        ]  # fmt: skip
        tokenizer = VideoTokenizer(settings["proxy"].model)
        wanted = sum(parameter.numel() for parameter in tokenizer.parameters())
        assert told["parts"][0]["parameters"] == wanted
        assert told["generator"]["text_pieces"] == text
    assert told["generator"]["class_names"] == ["0"]  # left
    capsys.readouterr()
    for command in ("plan", "train"):
        assert main([command, "mine.yaml"]) == 2
        assert "`evatok pipeline mine.yaml` tells how long" in capsys.readouterr().err


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
        (["--size", "128x70"], "size 128x70 is not a multiple of 8 from 16 on: give 128x72"),
        (["--size", "0"], "size 0 is not a multiple of 8 from 16 on: give 16"),
        (["--frames", "0"], "frames 0 is not a multiple of 4: give 4"),
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


@pytest.mark.parametrize(("name", "near"), [("u7.yaml", "u7"), ("v1.5", "v1-5"), ("a b", "a-b")])
def test_a_name_has_no_suffix(
    videos: Path, name: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", name, "--data", "v"]) == 2
    assert f"letters, digits, - and _; give {near}" in capsys.readouterr().err
    assert not list(Path().glob("*.yaml"))


def test_every_stage_goes_on_from_trained_models(videos: Path) -> None:
    assert main(["init", "mine", "--data", "v", "--start-from", "games", "--preset", "quick"]) == 0
    assert "start_from: games" in Path("mine.yaml").read_text()
    settings = Pipeline(Path("mine.yaml")).settings
    games = load("games")
    sizes = {name: VideoTokenizer(settings[name].model).state_dict() for name in ("proxy", "final")}
    for name, part in (
        ("proxy", "proxy"),
        ("final", "final"),
        ("router", "preference"),  # `games` has no router for one w_q
        ("preference", "preference"),
        ("generator", "generator"),
    ):
        assert settings[name].start_from == games.folder(part)
        assert settings[name].train.optimizer.lr <= 1e-3
    assert {k: v.shape for k, v in sizes["final"].items()} == {
        k: v.shape for k, v in games.final.state_dict().items()
    }
    assert sizes["proxy"].keys() != sizes["final"].keys()  # its decoder is not as deep
    assert not settings["router"].model.preference and settings["preference"].model.preference
    assert not settings["proxy"].start_from_data and not settings["router"].start_from_data
    assert settings["tokens"].frames == games.generator.frames
    assert settings["search"].candidates == 81  # of 625: it is to be quick
    assert min(time_of(settings, torch.device("cpu")).values()) > 0


def test_a_run_goes_on_from_another_one(videos: Path, toy_dir: Path) -> None:
    """From its folders, with what it has: here neither a router for every w_q nor classes."""
    for part in ("proxy", "router"):
        (Path("runs") / "first" / part).mkdir(parents=True)
        (Path("runs") / "first" / part / "model").symlink_to(toy_dir / part)
    assert main(["init", "mine", "--data", "v", "--start-from", "runs/first"]) == 0
    settings = Pipeline(Path("mine.yaml")).settings
    toy = load(toy_dir)
    assert settings["proxy"].model == toy.proxy.config
    assert settings["final"].start_from == Path("runs/first/proxy/model")
    assert settings["preference"].start_from == Path("runs/first/router/model")
    assert settings["generator"].start_from is None and settings["generator"].model.width == 256


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "96"], "start_from games has size 64x64, not 96x96: leave size as"),
        (["--frames", "8"], "start_from games has frames 16, not 8"),
        (["--levels", "4,16"], "start_from games has levels [4, 8, 16, 32, 64], not [4, 16]"),
        (["--start-from", "gmes"], "no models 'gmes'"),
        (["--start-from", "text"], "text has no tokenizer"),
    ],
)
def test_models_that_own_videos_cannot_start_from(
    videos: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = load("nano").folder("generator")
    (videos.parent / "text").mkdir()
    (videos.parent / "text" / "generator").symlink_to(generator)
    start = [] if "--start-from" in words else ["--start-from", "games"]
    assert main(["init", "mine", "--data", "v", *start, *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
    assert not Path("mine.yaml").exists()


def test_a_run_does_not_start_from_itself(
    videos: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(toy_dir)
    assert main(["init", "mine", "--data", "v", "--start-from", "runs/mine"]) == 2
    assert "runs/mine is where this run writes" in capsys.readouterr().err


def test_parts_are_found_in_a_run(
    toy_dir: Path, tmp_path: Path, footage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At any stage: before the final tokenizer the proxy reconstructs, and says so."""
    for part in ("proxy", "router"):
        (tmp_path / "run" / part).mkdir(parents=True)
        (tmp_path / "run" / part / "model").symlink_to(toy_dir / part)
    models = load(tmp_path / "run")
    assert models.parts == ["proxy", "router"] and models.proxy.num_blocks == 4
    assert models.features.dim > 6  # the shipped network
    assert models.final is models.proxy and "no final tokenizer yet" in caplog.text
    with pytest.raises(FileNotFoundError, match="no generator in"):
        _ = models.generator
    video = next(footage.rglob("*.mp4"))
    words = ["reconstruct", str(video), "--model", str(tmp_path / "run")]
    assert main([*words, "-o", str(tmp_path / "again"), "--assignment", "uniform:2"]) == 0
    assert (tmp_path / "again" / f"{video.stem}.mp4").is_file()
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 0
    assert load(tmp_path / "out").parts == ["proxy", "router"]
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "run" / "proxy")]) == 2


@pytest.mark.parametrize("words", [["--frames", "8"], ["--frames", "4", "--preset", "quick"]])
def test_time_is_guessed_for_every_stage(videos: Path, words: list[str]) -> None:
    assert main(["init", "mine", "--data", "v", "--size", "16x24", *words]) == 0
    settings = Pipeline(Path("mine.yaml")).settings
    seconds = time_of(settings, torch.device("cpu"))
    names = {"proxy", "search", "router", "preference", "final", "tokens", "generator", "report"}
    assert seconds.keys() == names and min(seconds.values()) > 0


def test_finished_stages_correct_the_guess() -> None:
    clock = Clock({"proxy": 10.0, "router": 20.0, "final": 5.0})
    assert clock.expected("export") is None and clock.left() == 35
    clock.learn("proxy", 30.0)
    clock.learn("export", 1.0)  # never guessed
    assert clock.expected("router") == 60 and clock.left() == 75
    assert [in_words(s) for s in (42.4, 91, 7200)] == ["42 s", "1.5 min", "2.0 h"]


def splits_of(name: str) -> dict[str, tuple[str, str, str]]:
    rows = listed(Path(f"{name}.csv"))
    return {row["path"]: (row["class"], row["split"], row.get("caption", "")) for row in rows}


WORDS = ["--size", "32x16", "--frames", "8"]


def test_a_list_of_json_lines(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"file_name": "v/left/0.mp4", "text": "nothing moves", "label": 7, "split": "val"},
        {"file_name": "v/left/1.mp4", "text": "a, b", "label": 7, "split": "train"},
        {"file_name": "v/right/1.mp4", "text": None},
        {"file_name": "v/right/2.mp4", "text": "right"},
    ]
    Path("list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["init", "mine", "--data", "list.jsonl", *WORDS]) == 0
    said = capsys.readouterr().out
    assert "list list.jsonl" in said and "2 as given, 1 drawn" in said
    assert splits_of("mine") == {
        "v/left/0.mp4": ("7", "test", "nothing moves"),
        "v/left/1.mp4": ("7", "train", "a, b"),
        "v/right/2.mp4": ("v", "train", "right"),
    }
    settings = Pipeline(Path("mine.yaml")).settings
    assert settings["proxy"].model.size == (16, 32)  # --size has the width first


def test_a_flat_folder_with_captions(videos: Path) -> None:
    lines = [json.dumps({"path": f"{n}.mp4", "caption": f"ball {n}"}) for n in range(3)]
    Path("captions.jsonl").write_text("\n".join(lines))
    words = ["--data", "v/left", "--captions", "captions.jsonl", *WORDS]
    assert main(["init", "flat", *words]) == 0
    rows = splits_of("flat")
    assert rows.keys() == {"0.mp4", "1.mp4", "2.mp4"} and rows["1.mp4"][2] == "ball 1"
    assert {label for label, _, _ in rows.values()} == {"video"}
    assert "text" in Pipeline(Path("flat.yaml")).settings


def shard(path: Path, members: dict[str, bytes], link: str | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo("link.mp4")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)


def test_shards_are_unpacked_under_safe_names(videos: Path) -> None:
    video = (videos / "left" / "1.mp4").read_bytes()
    Path("shards").mkdir()
    shard(
        Path("shards/a-0.tar"),
        {"x/0.mp4": video, "x/0.txt": b"one\n", "../../1.mp4": video, "../../1.json": b'{"caption":'
         b' "two", "class": "left"}', "note.md": b"#"},
        link="/etc/passwd",
    )  # fmt: skip
    shard(Path("shards/a-1.tar"), {"2.MP4": video, "2.cls": b"right", "2.txt": b"three"})
    assert main(["init", "sharded", "--data", "shards", *WORDS]) == 0
    rows = splits_of("sharded")
    assert sorted((label, text) for label, _, text in rows.values()) == [
        ("left", "two"), ("right", "three"), ("video", "one")
    ]  # fmt: skip
    root = Path("sharded-videos").resolve()
    for name in rows:
        assert (root / name).resolve().is_relative_to(root)
    assert not list(root.glob("**/link*")) and not Path("../1.mp4").exists()


def test_a_damaged_shard_leaves_nothing(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(Path("whole.tar"), {"0.mp4": (videos / "left" / "1.mp4").read_bytes()})
    Path("cut.tar").write_bytes(Path("whole.tar").read_bytes()[:900])
    assert main(["init", "mine", "--data", "cut.tar", *WORDS]) == 2
    told = capsys.readouterr().err.strip()
    assert "cut.tar: damaged archive" in told and "\n" not in told
    assert not Path("mine.yaml").exists() and not list(Path("mine-videos").glob("*"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.jsonl", '{"path": "0.mp4"}', "c.jsonl, line 1: no caption; it has path"),
        ("c.jsonl", "0.mp4 one", "c.jsonl, line 1: no JSON object"),
        ("c.jsonl", '{"path": "v/left/9.mp4", "caption": "x"}', "names no video of v/left"),
        ("c.csv", "file,caption2\n0.mp4,x\n", "c.csv, line 2: no caption; it has file, caption2"),
        (".", "", "is a folder: give the .csv or .jsonl file of captions"),
    ],
)
def test_bad_captions_are_one_line(
    videos: Path, name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text:
        Path(name).write_text(text)
    words = ["--data", "v/left", "--captions", name, *WORDS]
    assert main(["init", "mine", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
