"""Twelve complaints that users of other programs have made in public, each as a user meets it.

docs/evaluation.md answers each under "How do I …".
"""

from __future__ import annotations

import gc
import json
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evaluation.scoring.score import score_clips
from evatok.cli.app import main

SIDE = 32
NOTHING = pytest.approx(0, abs=1e-9)


def pixels(seed: int, frames: int = 16, videos: int = 1) -> np.ndarray:
    """(N, F, H, W, 3) uint8: coarse noise that drifts."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 180, (videos, 1, 4, 4, 3)).repeat(8, 2).repeat(8, 3)
    drift = np.arange(frames).reshape(1, -1, 1, 1, 1) * rng.integers(1, 4, (videos, 1, 1, 1, 1))
    return (base + drift).clip(0, 255).astype(np.uint8)


def write(path: Path, frames: np.ndarray, codec: str = "ffv1", crf: int | None = None) -> None:
    """Write (F, H, W, 3) as a file, without loss in the pixels unless told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # x264's look at frames ahead reads memory that nobody has written in pictures so small
        options = {} if crf is None else {"crf": str(crf), "x264-params": "mbtree=0"}
        stream = container.add_stream(codec, rate=10, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0" if crf is None else "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def folder(path: Path, seed: int, lengths: tuple[int, ...]) -> Path:
    for number, frames in enumerate(lengths):
        write(path / f"{number}.mkv", pixels(100 * seed + number, frames)[0])
    return path


@pytest.fixture
def fvd(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command: its result, or the line that it ends with."""

    def run(real: Path, fake: Path, *words: str) -> Any:
        given = ["fvd", str(real), str(fake), "--size", str(SIDE), "--json", *words]
        given += [] if "--cache" in words else ["--no-cache"]
        status = main(given)
        out, err = capsys.readouterr()
        if status:
            assert status == 2 and "Traceback" not in err
            return err.splitlines()[-1]
        return json.loads(out.splitlines()[-1])

    return run


def test_1_one_or_two_videos(tmp_path: Path, fvd: Any) -> None:
    one, two = (folder(tmp_path / str(n), n, (16,) * n) for n in (1, 2))
    assert "the fake side has 1 clips; a distance needs 2 or more" in fvd(two, one)
    assert "--window all" in fvd(one, two)
    assert fvd(two, two)["fvd[nano]"] == NOTHING
    assert fvd(two, folder(tmp_path / "3", 3, (16, 16)))["fvd[nano]"] > 0
    long = [folder(tmp_path / name, n, (64,)) for n, name in enumerate(("a", "b"), 4)]
    assert fvd(*long, "--window", "all")["num_real"] == 4


def test_2_clips_of_6_7_and_9_frames(tmp_path: Path, fvd: Any) -> None:
    a, b = (folder(tmp_path / name, n, (6, 7, 9)) for n, name in enumerate("ab"))
    result = fvd(a, b)  # clips of 16
    assert result["num_real"] == 3 and result["padded_real"] == ["0.mkv", "1.mkv", "2.mkv"]
    nine = fvd(a, b, "--frames", "9")
    assert nine["num_frames"] == 9 and nine["padded_fake"] == ["0.mkv", "1.mkv"]
    for frames in ("6", "7"):
        told = fvd(a, b, "--frames", frames)
        assert f"clips of {frames} frames: nano needs 9 or more" in told and "--frames" in told


def test_3_exactly_16_frames_in_a_folder_of_frames(tmp_path: Path, fvd: Any) -> None:
    """The last frame counts, and frame 2 comes before frame 10."""
    for n in range(3):
        for number, picture in enumerate(pixels(n)[0]):
            path = tmp_path / "frames" / f"video {n}" / f"frame{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    films = tmp_path / "films"
    for n in range(3):
        write(films / f"{n}.mkv", pixels(n)[0])
    for window in ("first", "all", "random"):
        result = fvd(tmp_path / "frames", films, "--window", window)
        assert result["num_real"] == 3 and not result["padded_real"]
        assert result["fvd[nano]"] == NOTHING


def test_4_unequal_counts_and_lengths(
    tmp_path: Path, fvd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    a = folder(tmp_path / "a", 1, (16, 40, 9, 23))
    b = folder(tmp_path / "b", 2, (30, 16, 17))
    with caplog.at_level(logging.WARNING):
        result = fvd(a, b)
    assert (result["num_real"], result["num_fake"], result["num_frames"]) == (4, 3, 16)
    assert result["fvd[nano]"] > 0
    assert "4 real clips against 3: such a number compares only with" in caplog.text


def test_5_thousands_of_clips_in_bounded_memory() -> None:
    """Of a generator's clips no more than a batch is alive at a time."""
    alive: set[int] = set()
    most = 0

    def clips(seed: int) -> Iterator[Tensor]:
        nonlocal most
        for number in range(3000):
            clip = torch.full((3, 2, 8, 8), (number % 97 + seed) / 100)
            name = id(clip.untyped_storage())
            alive.add(name)
            weakref.finalize(clip, alive.discard, name)
            most = max(most, len(alive))
            yield clip
            del clip

    class Network:
        name, dim, checksum, device = "means", 3, "sum", torch.device("cpu")

        def __call__(self, clips: Tensor) -> Tensor:
            return clips.mean((2, 3, 4))

    gc.collect()
    result = score_clips(clips(0), clips(1), [Network()], batch_size=16)
    assert result["num_real"] == 3000 and most <= 18


def test_6_swapped_arguments(tmp_path: Path, fvd: Any) -> None:
    a, b = folder(tmp_path / "a", 1, (16, 16, 16)), folder(tmp_path / "b", 2, (20, 20))
    assert fvd(a, b)["fvd[nano]"] == fvd(b, a)["fvd[nano]"]


def test_7_which_number_is_the_fvd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line, named with its network; one number a network, no second kind of it."""
    a, b = folder(tmp_path / "a", 1, (16, 16)), folder(tmp_path / "b", 2, (16, 16))
    assert main(["fvd", str(a), str(b), "--size", str(SIDE), "--no-cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fvd[nano]: ") and float(lines[0].split()[1].replace(",", "")) > 0
    assert sum("fvd" in line for line in lines) == 1


def test_8_no_imaginary_part() -> None:
    """Singular covariances, equal and nearly equal sets, far fewer clips than features."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 20, 128):
        x = rng.standard_normal((count, 400)).astype(np.float32)
        for y, most in ((x, 0.0), (x + np.float32(1e-4), 1e-5), (x[::-1].copy(), 1e-6)):
            distance = frechet_distance(x, y)
            assert isinstance(distance, float) and 0 <= distance <= most + 1e-9
        x[:, 5:9] = 1  # features that never change
        assert 0 < frechet_distance(x, 2 * x) < 1e4


def test_9_a_changed_file_is_no_old_number(tmp_path: Path, fvd: Any) -> None:
    """Other pixels under the same name, size and time; and a moved file is known again."""
    a, b = folder(tmp_path / "a", 1, (16, 16, 16)), tmp_path / "b"
    cache = ("--cache", str(tmp_path / "features.sqlite"))
    b.mkdir()
    raw = pixels(7, videos=3)
    np.savez(b / "x.npz", x=raw)
    seen = os.stat(b / "x.npz")
    before = fvd(a, b, *cache)
    np.savez(b / "x.npz", x=pixels(8, videos=3))
    os.utime(b / "x.npz", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert os.stat(b / "x.npz").st_size == seen.st_size
    after = fvd(a, b, *cache)
    assert after["fvd[nano]"] == fvd(a, b)["fvd[nano]"] != before["fvd[nano]"]
    np.savez(b / "x.npz", x=raw)
    assert fvd(a, b, *cache)["fvd[nano]"] == before["fvd[nano]"]


def test_10_short_and_broken_videos_are_told(tmp_path: Path, fvd: Any) -> None:
    """A broken one gives no clip and no other stands in; too few are refused, not used twice."""
    a, b = folder(tmp_path / "a", 1, (16, 16, 4)), folder(tmp_path / "b", 2, (16, 16, 16))
    without = fvd(a, b)
    (b / "1.mkv").write_bytes((b / "1.mkv").read_bytes()[:1500])
    (b / "3.mp4").write_bytes(b"")
    result = fvd(a, b)
    assert sorted(result["damaged_fake"]) == ["1.mkv", "3.mp4"] and result["num_fake"] == 2
    assert result["num_files_fake"] == 4 and result["padded_real"] == ["2.mkv"]
    (b / "1.mkv").unlink()
    (b / "3.mp4").unlink()
    assert fvd(a, b)["fvd[nano]"] == result["fvd[nano]"] != without["fvd[nano]"]
    assert "has 2 clips, not 3: give --count 2" in fvd(a, b, "--count", "3")


def test_11_range_and_layout(tmp_path: Path, fvd: Any) -> None:
    """Of arrays only what can be one thing is taken; the same pixels give the same number."""
    real = folder(tmp_path / "real", 1, (16, 16, 16))
    raw = pixels(5, videos=3)  # (N, F, H, W, 3)
    first = torch.from_numpy(raw).permute(0, 4, 1, 2, 3)
    values = []
    for name, tensor in (
        ("last.npz", torch.from_numpy(raw)),
        ("first.pt", first.contiguous()),
        ("floats.pt", first / 127.5 - 1),
    ):
        path = tmp_path / name
        torch.save(tensor, path) if path.suffix == ".pt" else np.savez(path, x=tensor.numpy())
        values.append(fvd(real, path)["fvd[nano]"])
    assert len(set(values)) == 1
    for tensor, told in (
        (first / 255, "must be in [-1, 1]"),
        (first.float(), "must be in [-1, 1]"),
        (first.transpose(1, 2).contiguous(), "videos are uint8"),
        (first[:, :1].contiguous(), "videos are uint8"),
        (first.transpose(1, 2) / 127.5 - 1, "videos are uint8"),
        (first.long(), "videos are uint8"),
    ):
        torch.save(tensor, tmp_path / "wrong.pt")
        assert told in fvd(real, tmp_path / "wrong.pt")


def test_12_another_number_after_re_encoding(tmp_path: Path, fvd: Any) -> None:
    """Files without loss give the number of the arrays; the loss of a codec is in the number."""
    raw = np.concatenate([pixels(n) for n in range(4)])
    np.savez(tmp_path / "arrays.npz", x=raw)
    values = []
    for crf in (None, 18, 40):
        for number, frames in enumerate(raw):
            codec = "ffv1" if crf is None else "libx264"
            write(tmp_path / str(crf) / f"{number}.mkv", frames, codec, crf)
        values.append(fvd(tmp_path / "arrays.npz", tmp_path / str(crf))["fvd[nano]"])
    assert values[0] == NOTHING and 1e-6 < values[1] < values[2]
