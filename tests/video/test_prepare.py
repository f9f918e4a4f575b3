"""Copies for training: what they hold, and that a killed run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from evaluation.metrics.quality import psnr
from video.clips import covering, to_clip
from video.decoding.container import VideoError
from video.prepare import JOURNAL, Recipe, prepare, prepared_name, resampled, rewrite
from video.reading import frame_times, probe, read_frames
from video.seek import read_window
from video.writing import write_video

ROOT = Path(__file__).resolve().parent.parent.parent


def drifting(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(F, H, W, 3) uint8: smooth waves that move."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + k * y + 2 * t + seed) / (5 + k)) for k in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    for number in range(5):
        write_video(tmp_path / "in" / f"{number}.avi", drifting(20 + number, seed=number), 25)
    return tmp_path / "in"


SMALL = Recipe(size=32, crf=10)
FILES = [f"{number}.avi" for number in range(5)]


def test_sizes_keep_the_aspect() -> None:
    assert covering(240, 320, 128) == (128, 171)
    assert covering(1920, 1080, 128) == (228, 128)
    assert covering(100, 100, 64) == (64, 64)


def test_copies_hold_the_loaders_pixels(tmp_path: Path) -> None:
    """Loaded from the copy, a clip is nearly the one loaded from the original."""
    source = tmp_path / "in.avi"
    large = drifting(40, 24, 32).repeat(10, 1).repeat(10, 2)  # squares of ten pixels
    write_video(source, (large // 4) + 90, 30000 / 1001)
    count = rewrite(source, tmp_path / "copy.mp4", Recipe(size=64, crf=10))
    whole = read_frames(source, size=64)
    assert count == len(whole)
    copy = read_frames(tmp_path / "copy.mp4", size=64)
    assert copy.shape == whole.shape
    clips = [to_clip(frames)[None] for frames in (copy, whole)]
    assert psnr(*clips).item() > 35
    assert probe(tmp_path / "copy.mp4").fps == pytest.approx(probe(source).fps)


def test_a_copy_of_uneven_times_is_of_one_rate(assets: Path, tmp_path: Path) -> None:
    """Each frame of the copy shows what the original shows at that time."""
    source = assets / "odd" / "vfr.mp4"
    count = rewrite(source, tmp_path / "copy.mp4", Recipe(size=96, crf=4))
    told, rate = frame_times(source), probe(tmp_path / "copy.mp4").fps
    assert rate == pytest.approx(told.mean_rate, rel=1e-3) and count == len(told.times)
    whole, copy = read_frames(source).float(), read_frames(tmp_path / "copy.mp4").float()
    times = [float(t - told.times[0]) for t in told.times]
    for number in (0, 5, 15, 30, 39):
        errors = (whole - copy[number]).abs().mean((1, 2, 3))
        nearest = min(range(len(times)), key=lambda n: abs(times[n] - number / rate))
        assert int(errors.argmin()) == nearest


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"fps": 0}, "finite"), ({"fps": -1}, "finite"), ({"fps": float("nan")}, "finite"),
     ({"preset": "bogus"}, "none of x264's: ultrafast")],
)  # fmt: skip
def test_recipes_that_nothing_can_be_written_with(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(VideoError, match=told):
        Recipe(**setting)


def test_processes_change_no_byte(originals: Path, tmp_path: Path) -> None:
    done = prepare(FILES, originals, tmp_path / "one", SMALL)
    again = prepare(FILES, originals, tmp_path / "two", SMALL, workers=2)
    assert done == again and [row.frames for row in done] == [20, 21, 22, 23, 24]
    for file in FILES:
        one, two = (tmp_path / folder / prepared_name(file) for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_finished_files_are_not_done_again(originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(FILES[:3], originals, out, SMALL)
    stamps = {file: (out / prepared_name(file)).stat().st_mtime_ns for file in FILES[:3]}
    (out / prepared_name(FILES[1])).unlink()
    journal = out / JOURNAL
    journal.write_text(journal.read_text() + '{"file": "3.a')  # killed while it wrote
    done = prepare(FILES, originals, out, SMALL)
    assert [row.frames for row in done] == [20, 21, 22, 23, 24]
    for file in (FILES[0], FILES[2]):
        assert (out / prepared_name(file)).stat().st_mtime_ns == stamps[file]
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(rows) == 1 + 3 + 3
    with pytest.raises(VideoError, match="holds copies of other settings"):
        prepare(FILES, originals, out, Recipe(size=16))


def test_a_damaged_journal(
    originals: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that is no row is forgotten, and its file made again; settings are not guessed."""
    out = tmp_path / "out"
    done = prepare(FILES[:3], originals, out, SMALL)
    journal = out / JOURNAL
    lines = journal.read_bytes().splitlines()
    for wrong in (
        b"",
        b"[]",
        b'{"file": "x"}',
        b'{"file": 3, "frames": 1}',
        b"\xff\x00",
        b"{" * 9999,
    ):
        journal.write_bytes(b"\n".join([lines[0], wrong, *lines[2:]]) + b"\n")
        caplog.clear()
        assert prepare(FILES[:3], originals, out, SMALL) == done
        assert "prepared.jsonl:2 is no row: that file is prepared again" in caplog.text
    for wrong in (b"", b"{", b"\xff", b"[" * 99999):
        journal.write_bytes(b"\n".join([wrong, *lines[1:]]) + b"\n")
        with pytest.raises(VideoError, match=r"prepared\.jsonl is damaged: .* remove it"):
            prepare(FILES[:3], originals, out, SMALL)


@pytest.mark.parametrize("size", [0, 200, None])
def test_copies_that_are_not_whole_are_made_again(
    originals: Path, tmp_path: Path, size: int | None
) -> None:
    """Empty, cut, or with another last byte: a record in the journal is not enough."""
    out = tmp_path / "out"
    prepare(FILES[:2], originals, out, SMALL)
    copy = out / prepared_name(FILES[0])
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if size is None else whole[:size])
    stamp = (out / prepared_name(FILES[1])).stat().st_mtime_ns
    prepare(FILES[:2], originals, out, SMALL)
    assert copy.read_bytes() == whole
    assert (out / prepared_name(FILES[1])).stat().st_mtime_ns == stamp


def test_a_killed_run_goes_on(originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.video.prepare_five", str(originals), str(out)]
    for wanted in (1, 3):
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None:
            if len(list(out.glob("*.mp4"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    expected = prepare(FILES, originals, tmp_path / "undisturbed", SMALL)
    assert prepare(FILES, originals, out, SMALL) == expected
    for file in FILES:
        name = prepared_name(file)
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_damaged_files_are_named_and_limited(originals: Path, tmp_path: Path) -> None:
    (originals / "2.avi").write_text("no video")
    done = prepare(FILES, originals, tmp_path / "out", SMALL, max_damaged=0.2)
    assert "2.avi: not readable" in done[2].error and not (tmp_path / "out" / "2.mp4").exists()
    few = prepare(FILES, originals, tmp_path / "few", SMALL, max_damaged=0.1)
    assert [bool(row.error) for row in few] == [False, False, True, False, False]
    with pytest.raises(VideoError, match=r"1 of 5 videos are damaged, more than max_damaged 0 "):
        prepare(FILES, originals, tmp_path / "strict", SMALL, max_damaged=0)
    (originals / "3.avi").write_text("no video either")
    with pytest.raises(VideoError, match=r"2 of 5 videos are damaged, more than max_damaged 0\.1"):
        prepare(FILES, originals, tmp_path / "two", SMALL, max_damaged=0.1)
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(VideoError, match=r"two files become 0\.mp4"):
        prepare(["0.avi", "0.mov"], originals, tmp_path / "out", SMALL)


def test_damaged_files_are_tried_again_once_they_have_changed(
    originals: Path, tmp_path: Path
) -> None:
    out, journal = tmp_path / "out", tmp_path / "out" / JOURNAL
    good = (originals / "2.avi").read_bytes()
    (originals / "2.avi").write_bytes(good[:100])
    for _ in range(2):  # the second time it is not opened
        done = prepare(FILES, originals, out, SMALL, max_damaged=0.2)
        assert done[2].error and len(journal.read_text().splitlines()) == 6
    (originals / "2.avi").write_bytes(good)
    assert [row.frames for row in prepare(FILES, originals, out, SMALL)] == [20, 21, 22, 23, 24]
    # a journal of an older version does not know the original
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    older = [{k: v for k, v in row.items() if k != "source"} for row in rows[:-1]]
    assert any(row.get("error") for row in older)
    journal.write_text("".join(json.dumps(row) + "\n" for row in older))
    assert [row.frames for row in prepare(FILES, originals, out, SMALL)] == [20, 21, 22, 23, 24]
    (originals / "4.avi").unlink()  # neither read nor known: tried again every time
    (out / "4.mp4").unlink()
    for _ in range(2):
        assert prepare(FILES, originals, out, SMALL, max_damaged=0.2)[4].source is None


def test_nearest_frames_of_an_uneven_video() -> None:
    """At 0, 1/3, 2/3 … after the first frame; of two equally near the earlier."""
    times = [Fraction(n, 12) for n in (5, 6, 8, 11, 15, 16)]  # after the first: 0 1 3 6 10 11
    pictures = [np.full((1, 1, 3), number, np.uint8) for number in range(6)]
    taken = [int(p[0, 0, 0]) for p in resampled(zip(times, pictures, strict=True), 3)]
    assert taken == [0, 2, 3]  # 0, 4 (3 or 6: 3), 8 (6 or 10: the earlier)
    faster = [int(p[0, 0, 0]) for p in resampled(zip(times, pictures, strict=True), 12)]
    assert faster == [0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5]


def test_three_frames_a_second_of_a_file_of_uneven_rate(tmp_path: Path) -> None:
    path, ticks = tmp_path / "uneven.mkv", [0, 40, 80, 400, 1000, 1040, 1900, 2000]  # ms
    frames = drifting(len(ticks), 32, 32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1", "bf": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick, picture in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    count = rewrite(path, tmp_path / "three.mp4", Recipe(size=32, crf=1, fps=3))
    nearest = [min(range(len(ticks)), key=lambda n: abs(ticks[n] - 1000 * k / 3)) for k in range(7)]
    assert count == len(nearest)
    copied = read_frames(tmp_path / "three.mp4").float()
    for picture, number in zip(copied, nearest, strict=True):
        errors = [float((picture - torch.from_numpy(f).float()).abs().mean()) for f in frames]
        assert int(np.argmin(errors)) == number
    assert probe(tmp_path / "three.mp4").fps == 3
    assert torch.equal(read_window(tmp_path / "three.mp4", 5, 2).float(), copied[5:7])
