"""Awkward and damaged files: each kind is read by one rule."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from PIL import Image

from video.decoding.container import Damage, VideoError, open_video, survey
from video.decoding.picture import turned
from video.reading import first_time, frame_times, iter_timed, probe, read_frames
from video.writing import write_video

RED, GREEN = (255, 0, 0), (0, 255, 0)


def raw_frames(path: Path) -> torch.Tensor:
    """(F, H, W, 3) uint8 as they are stored."""
    container, stream = open_video(path)
    with container:
        return torch.from_numpy(
            np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
        )


def drifting(frames: int = 40, height: int = 96, width: int = 128) -> np.ndarray:
    """(F, H, W, 3) uint8: noise that moves, so that every frame has many bytes."""
    noise = np.random.default_rng(0).integers(
        0, 256, (height, width + 2 * frames, 3), dtype=np.uint8
    )
    return np.stack([noise[:, 2 * i : 2 * i + width] for i in range(frames)])


def encode(path: Path, codec: str, pictures: Iterable[np.ndarray], **options: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = options.pop("pix_fmt", "yuv420p")
        colors = options.pop("colors", None)
        stream.options = dict(options)
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
                if colors:
                    stream.codec_context.colorspace = int(colors)
                    stream.codec_context.color_range = 1
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if colors:
                frame = frame.reformat(
                    format=stream.pix_fmt, dst_colorspace=int(colors), dst_color_range=1
                )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def psnr(x: torch.Tensor, y: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(x.numpy().astype(float) - y).mean()))


@pytest.mark.parametrize(
    ("name", "decoded", "reason"),
    [
        ("trunc_fast.mp4", 20, "the file ends early, 1 could not be decoded"),
        ("trunc.avi", 25, "the file ends early, 1 only in part"),
        ("dmg.webm", 30, "a hole in the file"),
    ],
)
def test_files_that_lost_frames(assets: Path, name: str, decoded: int, reason: str) -> None:
    """Refused, also where only the first frames are asked for; or all that is there, and told."""
    path = assets / "odd" / name
    for count in (None, 4):
        with pytest.raises(VideoError, match=rf"{name}: damaged: {decoded} of 40 frames"):
            read_frames(path, count=count)
    lost: list[Damage] = []
    assert len(read_frames(path, on_damage=lost.append)) == decoded
    assert lost == [Damage(decoded, 40, reason)]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("mkv", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
        ("mpg", "mpeg2video"),
        ("flv", "libx264"),
    ],
)
def test_damage_in_the_middle(tmp_path: Path, suffix: str, codec: str) -> None:
    """Zeros over an eighth of a file: frames behind them are read, and what is lost is told."""
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    encode(good, codec, drifting(), g="8")
    assert len(read_frames(good)) == 40 and not survey(good).reason
    content = bytearray(good.read_bytes())
    half, part = len(content) // 2, len(content) // 8
    content[half : half + part] = bytes(part)
    bad.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged: \d+ of \d+ frames \(.*\)"):
        read_frames(bad)
    lost: list[Damage] = []
    frames = read_frames(bad, on_damage=lost.append)
    assert len(frames) == lost[0].decoded >= 20
    assert (frames[-1].float() - read_frames(good)[-1].float()).abs().mean() < 1


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("avi", "mpeg4")])
def test_a_file_cut_off(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(path, codec, drifting(), g="8")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(VideoError, match=r"of 40 frames \(the file ends early"):
        read_frames(path)


def test_a_pause_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(
        path, drifting(8), 25, times=[Fraction(n, 25) for n in (0, 1, 2, 3, 40, 41, 42, 90)]
    )
    assert not survey(path).reason and len(read_frames(path)) == 8


def test_cover_pictures_are_no_video(assets: Path) -> None:
    with pytest.raises(VideoError, match=r"cover\.m4a: has no video stream"):
        read_frames(assets / "odd" / "cover.m4a")
    frames = read_frames(assets / "odd" / "vidcover.mkv")
    assert frames.shape == (27, 96, 160, 3)


def test_uneven_times(assets: Path) -> None:
    told = frame_times(assets / "odd" / "vfr.mp4")
    assert not told.is_even and float(told.times[-1]) == 3.84
    gif = frame_times(assets / "odd" / "durs.gif")
    steps = [float(b - a) for a, b in zip(gif.times, gif.times[1:], strict=False)]
    assert steps == pytest.approx([0.02] * 10 + [0.5] * 9)
    assert frame_times(assets / "odd" / "sar2.mp4").is_even


def test_pixels_that_are_not_square(assets: Path, tmp_path: Path) -> None:
    path = assets / "odd" / "sar2.mp4"
    info, frames = probe(path), read_frames(path)
    assert (info.width, info.height) == (320, 96) and frames.shape == (40, 96, 320, 3)
    assert (frames[:, :, ::2].float() - raw_frames(path).float()).abs().mean() < 4
    for shape, width in (("1281/1280", 64), ("1/2", 32)):
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(shape)
            for picture in drifting(3, 32, 64):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        assert read_frames(tmp_path / "a.mkv").shape == (3, 32, width, 3)


def test_interlaced_fields_are_woven(assets: Path) -> None:
    """As many frames at the same times, without the comb that moving edges have in fields."""
    path = assets / "odd" / "inter.mpg"
    frames, stored = read_frames(path), raw_frames(path)
    assert frames.shape == stored.shape == (20, 96, 160, 3)

    def comb(x: torch.Tensor) -> float:
        x = x.float()
        lines = (x[:, 2:-2] - x[:, 1:-3]) * (x[:, 2:-2] - x[:, 3:-1])
        return float(lines.clamp(min=0).mean())

    assert comb(frames) < 0.5 * comb(stored)


def test_what_lies_under_alpha_is_not_shown(assets: Path, tmp_path: Path) -> None:
    frames = read_frames(assets / "odd" / "alpha.webm")
    assert (
        frames[:, :, :40].float().mean((0, 1, 2)) - torch.tensor([255.0, 0, 255])
    ).abs().max() < 4
    assert frames[:, :, 56:].max() == 0
    pictures = np.zeros((4, 16, 16, 4), np.uint8)
    pictures[..., :3], pictures[:, :8, :, 3] = (250, 10, 250), 255
    still = [Image.fromarray(picture) for picture in pictures]
    for name in ("a.gif", "a.webp"):
        more: dict[str, Any] = {"append_images": still[1:], "duration": 40, "lossless": True}
        still[0].save(tmp_path / name, save_all=True, **more)
        frames = read_frames(tmp_path / name)
        assert frames[:, 8:].max() == 0 and frames[:, :8, :, 0].min() > 240


def test_animated_webp(assets: Path, tmp_path: Path) -> None:
    path = assets / "odd" / "anim.webp"
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 20, 25)
    frames = read_frames(path)
    assert frames.shape == (20, 64, 64, 3)
    assert (frames[1:] != frames[:-1]).any((1, 2, 3)).any()
    (tmp_path / "cut.webp").write_bytes(path.read_bytes()[:900])
    with pytest.raises(VideoError, match=r"cut\.webp: damaged"):
        read_frames(tmp_path / "cut.webp")


ORIENTATIONS = [
    (a, b, c, d) for s in (1, -1) for t in (1, -1) for a, b, c, d in ((s, 0, 0, t), (0, s, t, 0))
]


def shown(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """By the definition: every stored pixel to its place."""
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    places = {(y, x): (b * x + d * y, a * x + c * y) for y in range(height) for x in range(width)}
    top, left = (min(place[axis] for place in places.values()) for axis in (0, 1))
    out = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    for (y, x), (row, column) in places.items():
        out[row - top, column - left] = picture[y, x]
    return out


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, drifting(2, 16, 24))
    stored = read_frames(path)
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(b"tkhd") + 44
    numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    content[start : start + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    path.write_bytes(content)
    for got, picture in zip(read_frames(path), stored, strict=True):
        assert np.array_equal(got.numpy(), shown(picture.numpy(), matrix))
    info = probe(path)
    assert (info.height, info.width) == shown(stored[0].numpy(), matrix).shape[:2]


def test_turning_goes_to_the_nearest(tmp_path: Path) -> None:
    picture = drifting(1, 4, 6)[0]
    assert np.array_equal(turned(picture, (65000, 900, -900, 65000)), picture)
    assert turned(picture, None) is picture


@pytest.mark.parametrize("colors", [1, 5, 9])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "options"),
    [
        ("libx264", "yuv420p", {"qp": "0"}),
        ("libx264", "yuv420p10le", {"qp": "0"}),
        ("libx265", "yuv420p10le", {"x265-params": "lossless=1:log-level=none"}),
    ],
)
def test_ten_bits_are_read_as_eight(
    tmp_path: Path, codec: str, pix_fmt: str, options: dict[str, str], colors: int
) -> None:
    """BT.709, BT.601 and BT.2020: right colours, and edges as sharp as those of eight bits."""
    y, x = np.mgrid[:64, :96]
    picture = np.stack([127 + 100 * np.sin((x * k + y) / 17) for k in (1, 2, 3)], -1)
    picture = picture.astype(np.uint8)
    picture[16:40, 20:60], picture[30:60, 64:90] = RED, GREEN
    path = tmp_path / "a.mp4"
    encode(path, codec, [picture] * 3, pix_fmt=pix_fmt, colors=str(colors), **options)
    assert psnr(read_frames(path)[1], picture) > 30


def test_b_frames_in_avi_ascend(tmp_path: Path) -> None:
    """AVI tells no times, and those that FFmpeg guesses with B-frames go to and fro."""
    path = tmp_path / "a.avi"
    pictures = list(drifting(23))
    encode(path, "libx264", pictures, bf="2", g="12", b_strategy="0", crf="10")
    container, stream = open_video(path)
    with container:
        guessed = [frame.pts or 0 for frame in container.decode(stream)]
    assert guessed != sorted(guessed)
    whole = [picture for _, picture in iter_timed(path)]
    assert len(whole) == 23
    for start in (0.0, 5.6):
        timed = list(iter_timed(path, start=start))
        assert all(b - a == Fraction(1, 25) for (a, _), (b, _) in pairwise(timed))
        assert all(
            np.array_equal(picture, want)
            for (_, picture), want in zip(timed[::-1], whole[::-1], strict=False)
        )
    likeness = [[psnr(torch.from_numpy(got), want) for want in pictures] for got in whole]
    assert np.argmax(likeness, 1).tolist() == list(range(23))
    assert first_time(path) == next(iter_timed(path))[0]


def test_a_damaged_avi_begins_where_it_begins(assets: Path) -> None:
    assert first_time(assets / "odd" / "trunc.avi") == 0
