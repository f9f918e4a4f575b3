"""Decoding: exact counts, rotation, awkward and damaged files; writing."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from video.decoding.container import VideoError
from video.reading import frame_times, iter_timed, probe, read_frames
from video.timed import write_timed
from video.writing import exact_rate, write_video


def moving(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth colours that shift by some pixels a frame, (F, H, W, 3) uint8."""
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width)), indexing="ij")
    waves = [
        (torch.sin((a * x + b * y + 3 * t) / 9) + 1) * 120 for a, b in ((1, 0), (0, 1), (1, 1))
    ]
    return torch.stack(waves, -1).to(torch.uint8)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 8000)
    for name, reason in (
        ("empty.mp4", "is empty"),
        ("text.mp4", "not readable as video"),
        ("sound.wav", "no video stream"),
        ("absent.mp4", "no such file"),
    ):
        for read in (probe, read_frames):
            with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
                read(tmp_path / name)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (5, 41, 63), (40, 18, 96)])
def test_written_frames_come_back(tmp_path: Path, frames: int, height: int, width: int) -> None:
    pictures = moving(frames, height, width)
    write_video(tmp_path / "a.mp4", pictures, fps=10, crf=4)
    write_video(tmp_path / "b.mp4", pictures, fps=10, crf=4)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == (frames, height + height % 2, width + width % 2, 3)
    error = back[:, :height, :width].float() - pictures.float()
    assert error.abs().mean() < 6  # chroma is stored at half size
    assert probe(tmp_path / "a.mp4").fps == 10
    assert not list(tmp_path.glob(".*"))  # no partial files


def test_gif_and_parts_of_a_video(tmp_path: Path) -> None:
    pictures = moving(70, 24, 24)
    write_video(tmp_path / "a.gif", pictures[:5])
    assert len(read_frames(tmp_path / "a.gif")) == 5
    write_video(tmp_path / "a.avi", pictures)
    whole = read_frames(tmp_path / "a.avi")
    assert torch.equal(read_frames(tmp_path / "a.avi", 33, 16), whole[33:49])
    assert read_frames(tmp_path / "a.avi", size=12).shape == (70, 12, 12, 3)
    with pytest.raises(VideoError, match="ends before frame 70"):
        read_frames(tmp_path / "a.avi", 70)


def test_writing_refuses_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="are not"):
        write_video(tmp_path / "a.mp4", torch.zeros(2, 8, 8, 3))
    with pytest.raises(VideoError, match=r"write \.mp4"):
        write_video(tmp_path / "a.txt", moving(1, 8, 8))
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(VideoError, match="frames a second: give a finite number above 0"):
            write_video(tmp_path / "a.mp4", moving(1, 8, 8), fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [1 / 1800, 0.3, 23.976, 30000 / 1001, 240])
def test_rates_are_written_as_they_are(tmp_path: Path, fps: float) -> None:
    assert float(exact_rate(fps)) == pytest.approx(fps, rel=1e-6)
    write_video(tmp_path / "a.mp4", moving(3, 8, 8), fps)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_times_are_written_as_they_are(tmp_path: Path, suffix: str) -> None:
    path, times = tmp_path / f"a.{suffix}", [Fraction(n, 100) for n in (5, 7, 20, 100, 104, 300)]
    write_video(path, moving(6, 16, 16), 2, times=times)
    told = frame_times(path)
    assert [t - told.times[0] for t in told.times] == [t - times[0] for t in times]
    assert not told.is_even and len(read_frames(path)) == 6


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "gif"])
@pytest.mark.parametrize(
    ("times", "written"),
    [
        ((0, 4, 4, 8, 12, 16), (0, 4, 8, 12, 16, 20)),  # twice the same
        ((0, 4, 8, 0, 4, 12), (0, 4, 8, 12, 16, 24)),  # another file was appended
        ((8, -8, 4, 8, 12, 16), (0, 4, 16, 20, 24, 28)),  # one is before the start
    ],
)
def test_times_that_do_not_grow_are_made_to(
    tmp_path: Path, suffix: str, times: tuple[int, ...], written: tuple[int, ...]
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, moving(6, 16, 16), 25, times=[Fraction(n, 100) for n in times])
    assert [round(100 * time) for time, _ in iter_timed(path)] == list(written)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "gif", "avi"])
def test_times_that_cannot_be_written_are_refused(tmp_path: Path, suffix: str) -> None:
    """Unsigned, 32-bit and 64-bit counters of containers would end before."""
    for far in (86_400, 10**15):
        for times in ([0, 1, far], [-far, 0, 1]):
            with pytest.raises(VideoError, match="one rate"):
                write_video(
                    tmp_path / f"a.{suffix}", moving(3, 16, 16), 1, times=map(Fraction, times)
                )
    if suffix in ("mp4", "mov", "mkv"):
        frames = enumerate(moving(2, 16, 16).numpy())
        with pytest.raises(VideoError, match="one rate"):
            write_timed(tmp_path / f"a.{suffix}", frames, Fraction(86_400))
    assert not list(tmp_path.iterdir())
