"""Decoding: exact counts, rotation, awkward and damaged files; writing."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from video.io import VideoError, iter_frames, probe, read_frames, write_video

COUNTS = {  # frames, width, height as shown
    "odd/av1_video.mkv": (125, 640, 360),
    "odd/bt709_full_range.mp4": (30, 1280, 720),
    "odd/h264_10bits.mp4": (30, 200, 200),
    "odd/h265_10bits.mp4": (30, 200, 200),
    "odd/h265_video.mp4": (10, 128, 128),
    "odd/unordered.mov": (4, 50, 50),
    "odd/video_0.mov": (3, 568, 320),
    "odd/video_90.mov": (3, 320, 568),
    "odd/video_180.mov": (3, 568, 320),
    "odd/video_270.mov": (3, 320, 568),
    "natural/newtonscradle.gif": (36, 200, 150),
    "natural/mma_test.avi": (164, 320, 240),
    "natural/part_0.mp4": (32, 340, 256),
}


def moving(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth colours that shift by some pixels a frame, (F, H, W, 3) uint8."""
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width)), indexing="ij")
    waves = [
        (torch.sin((a * x + b * y + 3 * t) / 9) + 1) * 120 for a, b in ((1, 0), (0, 1), (1, 1))
    ]
    return torch.stack(waves, -1).to(torch.uint8)


@pytest.mark.parametrize("name", COUNTS)
def test_real_files_have_exactly_their_frames(shared: Path, name: str) -> None:
    frames, width, height = COUNTS[name]
    info = probe(shared / "data" / name)
    assert (info.width, info.height) == (width, height)
    pictures = list(iter_frames(shared / "data" / name))
    assert len(pictures) == frames
    assert all(p.shape == (height, width, 3) and p.dtype == np.uint8 for p in pictures)


def test_rotation_turns_the_picture_upright(shared: Path) -> None:
    """The four files show one scene: once turned, they must agree when made equally small."""
    folder = shared / "data" / "odd"
    upright = {angle: read_frames(folder / f"video_{angle}.mov", size=32) for angle in (0, 180)}
    turned = {angle: read_frames(folder / f"video_{angle}.mov", size=32) for angle in (90, 270)}
    for angle, expected in ((180, 180), (90, 270), (270, 90)):
        assert probe(folder / f"video_{angle}.mov").rotation == expected
    assert upright[0].shape == upright[180].shape == turned[90].shape == (3, 32, 32, 3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_display_matrix_is_honoured(shared: Path, turns: int) -> None:
    """The stored picture, turned counter-clockwise by the metadata, is what we give."""
    import av

    angle = {1: 270, 2: 180, 3: 90}[turns]
    path = shared / "data" / "odd" / f"video_{angle}.mov"
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        raw, told = stored.to_ndarray(format="rgb24"), stored.rotation
    assert np.array_equal(next(iter_frames(path)), np.rot90(raw, told // 90))


def test_a_file_damaged_half_way(shared: Path) -> None:
    path = shared / "data" / "odd" / "corrupted.mp4"
    with pytest.raises(VideoError, match=r"corrupted\.mp4: damaged after 28 frames"):
        read_frames(path)
    assert len(read_frames(path, allow_damaged=True)) == 28
    assert len(read_frames(path, count=16)) == 16  # what lies before the damage is fine


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
    assert not list(tmp_path.iterdir())
