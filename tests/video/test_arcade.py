"""The recorder: the same bytes for the same settings, in the layout of UCF-101."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from video.arcade.atari import GAMES
from video.arcade.processes import in_workers
from video.arcade.recorder import _encode, class_name, record
from video.reading import VideoError, read_frames

TINY: dict[str, Any] = {"train_clips": 2, "test_clips": 2, "num_frames": 8, "size": 32, "seed": 3}
PAIR = ("boxing", "yars_revenge")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("arcade") / "data", PAIR, **TINY)


def read_all(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_the_same_pictures_are_the_same_bytes(tmp_path: Path, size: int) -> None:
    """Again and again, with memory in between that holds anything."""
    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    frames = np.stack([np.roll(picture, (k, 2 * k), (0, 1)) for k in range(8)])
    found = set()
    for _ in range(40):
        _junk = [rng.bytes(int(count)) for count in rng.integers(100, 50_000, 20)]
        _encode(tmp_path / "clip.avi", frames, 15)
        found.add((tmp_path / "clip.avi").read_bytes())
    assert len(found) == 1


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_same_settings_give_the_same_bytes_with_any_number_of_workers(
    recording: Path, tmp_path: Path
) -> None:
    again = record(tmp_path / "again", PAIR, **TINY, num_workers=2)
    assert read_all(again) == read_all(recording)


def test_another_seed_gives_other_videos(recording: Path, tmp_path: Path) -> None:
    other = record(tmp_path / "other", PAIR[:1], **{**TINY, "seed": 4})
    name = "Boxing/v_Boxing_g01_c01.avi"
    assert (other / name).read_bytes() != (recording / name).read_bytes()


def test_layout_is_that_of_ucf101(recording: Path) -> None:
    assert (recording / "classInd.txt").read_text() == "1 Boxing\n2 YarsRevenge\n"
    assert (recording / "testlist01.txt").read_text().split("\n") == [
        "Boxing/v_Boxing_g01_c01.avi",
        "Boxing/v_Boxing_g02_c01.avi",
        "YarsRevenge/v_YarsRevenge_g01_c01.avi",
        "YarsRevenge/v_YarsRevenge_g02_c01.avi",
        "",
    ]
    assert (recording / "trainlist01.txt").read_text().split("\n") == [
        "Boxing/v_Boxing_g08_c01.avi 1",
        "Boxing/v_Boxing_g09_c01.avi 1",
        "YarsRevenge/v_YarsRevenge_g08_c01.avi 2",
        "YarsRevenge/v_YarsRevenge_g09_c01.avi 2",
        "",
    ]
    listed = (recording / "trainlist01.txt").read_text() + (
        recording / "testlist01.txt"
    ).read_text()
    for path in recording.rglob("*.avi"):
        assert path.relative_to(recording).as_posix() in listed


def test_videos_have_the_wanted_shape_and_move(recording: Path) -> None:
    videos = {path.name: decode(path) for path in sorted(recording.rglob("*.avi"))}
    assert len(videos) == 8
    for video in videos.values():
        assert video.shape == (8, 32, 32, 3)
        assert np.abs(np.diff(video.astype(int), axis=0)).max() > 50
    names = list(videos)
    for i, first in enumerate(names):  # test clips, train clips and classes all differ
        for second in names[:i]:
            assert not np.array_equal(videos[first], videos[second]), (first, second)


def test_more_clips_than_groups_are_dealt_in_turn(tmp_path: Path) -> None:
    root = record(tmp_path / "many", ("boxing",), 1, 8, num_frames=2, size=16)
    tests = (root / "testlist01.txt").read_text().split()
    assert [name.rpartition("Boxing_")[2] for name in tests[:4]] == [
        "g01_c01.avi",
        "g01_c02.avi",
        "g02_c01.avi",
        "g03_c01.avi",
    ]
    assert len(tests) == 8


def test_a_finished_recording_is_left_alone(recording: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in recording.rglob("*")}
    assert record(recording, PAIR, **TINY) == recording
    assert {path: path.stat().st_mtime_ns for path in recording.rglob("*")} == before


def test_other_settings_are_an_error(recording: Path) -> None:
    with pytest.raises(VideoError, match=r"other settings \(seed 3 not 9\)"):
        record(recording, PAIR, **{**TINY, "seed": 9})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "arcade.json").write_bytes(content)
    with pytest.raises(VideoError, match=r"arcade\.json is damaged .* another folder"):
        record(tmp_path, PAIR, **TINY)


def test_a_foreign_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(VideoError, match="no arcade recording"):
        record(tmp_path, PAIR, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 33}, "size 33 is odd"),
        ({"num_frames": 1}, "num_frames 1 is not in"),
        ({"test_clips": 0}, "test_clips 0 is not in"),
        ({"games": ("boxing", "boxing")}, "distinct"),
        ({"games": ("no_such_game",)}, "no one-player game named 'no_such_game'"),
        (
            {"games": ("joust",)},
            "no one-player game named 'joust'",
        ),  # for two players: would end the process
    ],
)
def test_bad_settings_are_named_and_nothing_is_left(
    tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(VideoError, match=message):
        record(tmp_path / "bad", **{"games": PAIR, **TINY, **change})
    assert not list(tmp_path.iterdir())


def test_progress_counts_files(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record(tmp_path / "one", ("boxing",), 1, 1, 2, 16, on_progress=lambda *n: seen.append(n))
    assert seen == [(1, 2), (2, 2)]


def test_there_are_24_games_with_names_of_their_own() -> None:
    assert len({class_name(game) for game in GAMES}) == len(GAMES) == 24
    assert class_name("up_n_down") == "UpNDown"


def test_settings_are_saved(recording: Path) -> None:
    saved = json.loads((recording / "arcade.json").read_text())
    assert saved["games"] == list(PAIR)
    assert {key: saved[key] for key in TINY} == TINY


def test_a_recording_of_before_the_other_sources_is_known_again(recording: Path) -> None:
    path = recording / "arcade.json"
    text = path.read_text()
    saved = json.loads(text)
    assert saved.pop("source") == "atari"
    path.write_text(json.dumps(saved))
    assert record(recording, PAIR, **TINY) == recording
    path.write_text(text)


def start(root: Path, workers: int) -> subprocess.Popen[str]:
    """Another process that records for a long time; its first file is there on return."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("record_long.py"), root, str(workers)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = root.with_name(root.name + ".partial")
    while not list(partial.glob("*/*.avi")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return process


def test_a_second_recorder_leaves_the_first_alone(tmp_path: Path) -> None:
    """It says that another one is at work; a killed one's folder is taken over."""
    root = tmp_path / "data"
    first = start(root, 1)
    try:
        with pytest.raises(VideoError, match="another process records here"):
            record(root, ("boxing",), **TINY)
        assert first.poll() is None and list(tmp_path.glob("data.partial/*/*.avi"))
    finally:
        first.kill()
        first.communicate()
    assert record(root, ("boxing",), **TINY) == root
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not (root / ".lock").exists() and len(list(root.rglob("*.avi"))) == 4


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """They hold the parent's stderr: it is closed when the last of them has ended."""
    first = start(tmp_path / "data", 2)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)


def test_a_worker_s_complaint_is_told_without_a_traceback(tmp_path: Path) -> None:
    tasks = [tmp_path / "none.avi"]
    with pytest.raises(VideoError, match=r"none\.avi") as caught:
        list(in_workers(read_frames, tasks, 1))
    assert caught.traceback[-1].name == "in_workers"
