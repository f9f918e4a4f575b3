"""Decoding: exact counts, rotation, awkward and damaged files; writing."""

from __future__ import annotations

import gc
import os
import shutil
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
import torch
from PIL import Image

from video.decoding.container import VideoError
from video.decoding.stills import is_picture, is_still
from video.reading import first_time, frame_times, iter_timed, probe, read_frames
from video.seek import count_frames, known_frames
from video.timed import copy_sound, write_timed
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
    for fps in (0, -1, 1e-320, float("nan"), float("inf")):
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


VOP = b"\0\0\1\xb6"  # begins a frame of MPEG-4
B_FRAME = 2  # the two bits behind it


def write_packed(path: Path, pictures: np.ndarray, group: int) -> None:
    """Write an AVI as XviD does: a frame shares a packet with the B frame that is shown before it.

    An empty frame keeps the place of each that was moved.
    """
    encoder = av.CodecContext.create("mpeg4", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width, encoder.pix_fmt = *pictures.shape[1:3], "yuv420p"
    encoder.time_base, encoder.bit_rate, encoder.thread_count = Fraction(1, 25), 4_000_000, 1
    encoder.options = {"bf": "2", "g": str(group), "sc_threshold": "1000000000"}
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    for number, frame in enumerate(frames):
        frame.pts = number
    coded = [bytes(packet) for frame in [*frames, None] for packet in encoder.encode(frame)]
    kinds = [data[data.index(VOP) + 4] >> 6 for data in coded]
    packets: list[bytes] = []
    empty = VOP + b"\x50\x6f"
    for data, kind, before in zip(coded, kinds, [0, *kinds], strict=False):
        if kind != B_FRAME:
            if before == B_FRAME:
                packets.append(empty)
            place = data.index(VOP)
            mark = b"\0\0\1\xb2DivX503b1393p" if kind == 0 else b""
            packets.append(data[:place] + mark + data[place:])
        elif before != B_FRAME:
            packets[-1] += data
        else:
            packets.append(data)
    if kinds[-1] == B_FRAME:
        packets.append(empty)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.codec_tag = "XVID"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = data[data.index(VOP) + 4] >> 6 == 0
            container.mux(packet)


def test_guessed_times_of_an_avi_are_put_in_order(tmp_path: Path) -> None:
    """Where two frames share a packet, FFmpeg tells 1, 2, 4, 3, 5, 7, 6 of frames in order."""
    path = tmp_path / "packed.avi"
    pictures = np.full((250, 32, 64, 3), 60, np.uint8)
    for number, picture in enumerate(pictures):
        picture[:, : 1 + number % 60] = 200
    write_packed(path, pictures, group=24)
    with av.open(str(path)) as container:
        guessed = [frame.pts for frame in container.decode(video=0) if frame.pts is not None]
    assert guessed != sorted(guessed)
    whole = list(iter_timed(path))
    times = [time for time, _ in whole]
    assert times == [first_time(path) + Fraction(n, 25) for n in range(250)]
    assert times == list(frame_times(path).times)
    for (_, picture), original in zip(whole, pictures, strict=True):
        assert np.abs(picture.astype(int) - original).mean() < 8
    # a late start meets B frames of the group before, which are no damage
    late = [pair for pair in iter_timed(path, start=8.0) if pair[0] >= 8]
    wanted = [pair for pair in whole if pair[0] >= 8]
    assert [time for time, _ in late] == [time for time, _ in wanted]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(late, wanted, strict=True))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".tiff"])
def test_pictures_are_videos_of_one_frame(tmp_path: Path, suffix: str) -> None:
    """Turned as EXIF asks; FFmpeg tells of EXIF in a way that PyAV cannot read."""
    path, upright = tmp_path / f"photo{suffix}", moving(1, 40, 60)[0].numpy()
    exif = Image.Exif()
    exif[0x112] = 6  # stored lying on its left side
    quality: dict[str, dict[str, Any]] = {".webp": {"lossless": True}, ".jpg": {"quality": 98}}
    options = quality.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif, **options)
    ((time, picture),) = iter_timed(path)
    assert time == first_time(path) == 0 and picture.shape == (40, 60, 3)
    assert np.abs(picture.astype(int) - upright).mean() < (8 if suffix == ".jpg" else 0.01)
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (60, 40, 1)
    assert not copy_sound(path, tmp_path / "sound.mka")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_of_any_name_is_turned_as_exif_asks(tmp_path: Path, orientation: int) -> None:
    exif, picture = Image.Exif(), moving(1, 16, 24)[0].numpy()
    exif[0x112] = orientation
    with (tmp_path / "a.jpg").open("wb") as file:
        Image.fromarray(picture).save(file, "JPEG", exif=exif, quality=98, subsampling=0)
    wanted = read_frames(tmp_path / "a.jpg")
    for name in ("a.jpe", "a.JFIF", "a.mp4"):
        shutil.copy(tmp_path / "a.jpg", tmp_path / name)
        frames = read_frames(tmp_path / name)
        assert frames.shape == wanted.shape
        assert (frames.float() - wanted.float()).abs().mean() < 2
        assert probe(tmp_path / name).height == wanted.shape[1]


def test_pages_of_a_tiff_are_frames(tmp_path: Path) -> None:
    path, pages = tmp_path / "a.tif", moving(3, 16, 24).numpy()
    first, *rest = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=rest)
    times, pictures = zip(*iter_timed(path), strict=True)
    assert times == tuple(Fraction(n, 25) for n in range(3)) and probe(path).fps == 25
    assert np.array_equal(np.stack(pictures), pages)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(VideoError, match=r"a\.tif: .*pixels are floats"):
        read_frames(path)


def test_a_gif_without_control_blocks_keeps_its_frames(tmp_path: Path) -> None:
    """FFmpeg finds one; they come ten a second, as it tells of a frame without a time."""
    path, random = tmp_path / "a.gif", np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)) for _ in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    assert path.read_bytes().startswith(b"GIF87a")
    timed = list(iter_timed(path))
    assert [time for time, _ in timed] == [Fraction(n, 10) for n in range(4)]
    for (_, got), want in zip(timed, pictures, strict=True):
        assert np.array_equal(got, np.asarray(want.convert("RGB")))
    assert probe(path).num_frames == count_frames(path) == 4 and known_frames(path) is None
    assert not is_still(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VideoError, match=r"a\.gif: damaged"):
        read_frames(path)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=20)
    assert not is_picture(path) and len(read_frames(path)) == 4


def test_alpha_of_a_picture_lies_over_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:4, :, 3] = 0
    for name in ("a.png", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name, lossless=True)
        (picture,) = read_frames(tmp_path / name).numpy()
        assert (picture[:4] == 0).all() and (picture[4:] == 157).all()  # 200 · 200 / 255


def test_sound_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a token file whose sound is damaged: in one line, and nothing is left."""
    with av.open(str(tmp_path / "sound.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())

    def fail(*_: object) -> None:
        raise av.error.ArgumentError(22, "Invalid argument", ".x.partial.mkv")

    monkeypatch.setattr("video.timed._mux_sound", fail)
    frames = [(n, picture) for n, picture in enumerate(moving(4, 24, 24).numpy())]
    path = tmp_path / "a.mkv"
    with pytest.raises(
        VideoError, match=r"a\.mkv: the sound is damaged \(Invalid argument\): leave"
    ):
        write_timed(path, frames, Fraction(1, 10), tmp_path / "sound.mka")
    assert [entry.name for entry in tmp_path.iterdir()] == ["sound.mka"]
    for damage in (b"", b"not a container", silent_file(tmp_path)):
        (tmp_path / "sound.mka").write_bytes(damage)
        with pytest.raises(VideoError, match=r"a\.mkv: the sound is damaged .*--no-sound"):
            write_timed(path, frames, Fraction(1, 10), tmp_path / "sound.mka")
        assert not path.exists()


def silent_file(folder: Path) -> bytes:
    """A whole container without a track of sound."""
    write_video(folder / "silent.mp4", moving(2, 24, 24))
    return (folder / "silent.mp4").read_bytes()


def test_frames_leave_no_threads_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(60, 64, 64).numpy(), 10)
    gc.disable()  # it would clear them away at last
    try:
        before = len(os.listdir("/proc/self/task"))
        read_frames(tmp_path / "a.mp4")
        after = len(os.listdir("/proc/self/task"))
    finally:
        gc.enable()
    assert after <= before + 8  # the decoder's own
