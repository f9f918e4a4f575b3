"""A good set of every file that is read: toy footage, the toy pipeline run on it, and small files.

Everything lies in one folder and names the rest by relative paths, so that a copy of parts of it
is a case of its own.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
HOME = "home"  # the cache of kernels and features
SAMPLE = ["-n", "2", "--chunk", "2", "--model", "run/export", "--plain"]


def module(path: str) -> Any:
    """A module of the tests, by its path below tests/."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], TESTS / path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def make() -> int:
    """Make all of it in the current folder; 0 if every command succeeded."""
    from evatok.cli.app import main

    square = module("evatok/conftest.py").moving_square
    _footage(Path("squares"), square)
    _footage(Path("games"), square, ("Boxing", "Frogger"), train=2)  # classes that a protocol knows
    module("evatok/workflows/test_pipeline.py").write_settings(
        Path("toy"), Path("squares"), Path("run")
    )
    data = Path("toy/data.yaml").read_text()
    Path("games/data.yaml").write_text(data.replace("root: squares", "root: games"))
    for stage in ("router", "generator"):  # the pipeline knows without being told
        path = Path(f"toy/{stage}.yaml")
        wide = path.read_text().replace("width: 16", "width: 32")  # as the compiled steps need
        path.write_text(f"stage: {stage}\n{wide}")
    commands = [
        ["pipeline", "toy", "--until", "export", "--force"],
        ["sample", "-o", "samples", *SAMPLE],
        ["sample", "-o", "arrays", "--format", "npz", *SAMPLE],
        ["fvd", "squares/Left", "squares/Right", "--model", "run/export", "--frames", "12",
         "--size", "32", "--cache", "features.sqlite", "--record", "record.json"],
        ["leaderboard", "add", "record.json", "--board", "board.json"],
    ]  # fmt: skip
    for words in commands:
        if main(words):
            return 1
    with sqlite3.connect("features.sqlite") as file:  # all of it in one file
        file.execute("PRAGMA journal_mode=DELETE")
    file.close()
    _videos(Path("videos"), square)
    _sets(Path("."))
    _tensors(Path("tensors"), square)
    Path("tokens").mkdir()
    module("evatok/generate/test_token_file.py").with_sound(
        Path("tokens/sound.mp4"), square(40, 38, 46, 3)
    )
    if main(
        [
            "encode",
            "tokens/sound.mp4",
            "-o",
            "tokens/clip.evt",
            "--model",
            "run/export",
            "--chunk-clips",
            "1",
        ]
    ):
        return 1
    return main(["data", "ucf101", "squares", "--out", "prepared", "--workers", "1",
                 "--size", "32"])  # fmt: skip


def _footage(
    root: Path, square: Any, names: tuple[str, str] = ("Left", "Right"), train: int = 3
) -> None:
    """Two classes of four short videos in the layout of UCF-101."""
    from video.writing import write_video

    lists: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for label, name in enumerate(names):
        for number in range(4):
            group = 8 + number if number < train else 1
            path = f"{name}/v_{name}_g{group:02d}_c01.mp4"
            (root / name).mkdir(parents=True, exist_ok=True)
            write_video(root / path, square(16, 32, 32, 100 * label + number), 15, crf=10)
            line = f"{path} {label + 1}" if number < train else path
            lists["trainlist01.txt" if number < train else "testlist01.txt"].append(line)
    (root / "classInd.txt").write_text(f"1 {names[0]}\n2 {names[1]}\n")
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")


def _videos(root: Path, square: Any) -> None:
    """One short clip in every container, and pictures as frames."""
    from video.writing import write_video

    root.mkdir()
    frames = square(16, 32, 32, 7)
    write_video(root / "clip.mp4", frames, 15, crf=10)
    iio.imwrite(root / "clip.avi", frames, plugin="pyav", codec="mpeg4", fps=15)
    iio.imwrite(root / "clip.webm", frames, plugin="pyav", codec="libvpx", fps=15)
    iio.imwrite(root / "clip.mkv", frames, plugin="pyav", codec="libx264", fps=15)
    iio.imwrite(root / "clip.gif", frames, duration=66, loop=0)
    iio.imwrite(root / "clip.webp", frames, duration=66)
    for folder, suffix in (("pngs", "png"), ("jpgs", "jpg"), ("webps", "webp")):
        (root / folder).mkdir()
        for number, frame in enumerate(frames):
            iio.imwrite(root / folder / f"{number}.{suffix}", frame)


def _sets(root: Path) -> None:
    """Lists of Kinetics and WebVid with the videos that they name, and captions."""
    some = sorted(Path("squares").glob("*/*.mp4"))[:3]
    for name in ("k600", "webvid"):
        (root / name).mkdir()
        for number, file in enumerate(some):
            short = f"id{number}_000001_000011.mp4" if name == "k600" else f"{number}.mp4"
            shutil.copy(file, root / name / short)
    rows = [f'"a, b",id{n},1,11,val' for n in range(3)]
    (root / "k600" / "val.csv").write_text(
        "\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n"
    )
    rows = [f'{n},"a bright, wide clip {n}",' for n in range(3)]
    (root / "webvid" / "results.csv").write_text("\n".join(["videoid,name,page_dir", *rows]) + "\n")
    texts = ["a bright clip of left", "a dark clip of right with much motion", "left, dim"]
    (root / "captions.csv").write_text(
        "path,caption\n" + "".join(f'{n}.mp4,"{text}"\n' for n, text in enumerate(texts * 3))
    )
    (root / "captions.txt").write_text("\n".join(texts * 3) + "\n")


def _tensors(root: Path, square: Any) -> None:
    """Arrays as others write them."""
    root.mkdir()
    clips = np.stack([square(16, 32, 32, seed) for seed in range(4)])
    np.savez(root / "clips.npz", videos=clips)
    torch.save(torch.from_numpy(clips), root / "clips.pt")
    (root / "notes.json").write_text(json.dumps({"clips": 4}))
