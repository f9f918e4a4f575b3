"""Frames to video files: H.264 in MP4, AVI, MOV and MKV, or GIF; the same bytes every time.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from torch import Tensor

from evatok.core.files import atomic_file
from video.decoding.container import GROUPS, VideoError

TICKS = 90_000  # a second, of times that are written
LONGEST_GAP = 6 * 3600  # seconds between two frames that MP4 holds
LONGEST_OF_GIF = 655  # 16 bits of hundredths
# x264's macroblock tree reads memory that nobody has written.
REPEATABLE = {"mbtree": "0", "flags": "+bitexact"}


def write_video(
    path: Path | str,
    frames: Tensor | np.ndarray | Iterable[np.ndarray],
    fps: float = 25.0,
    crf: int = 18,
    keyframe_every: int | None = None,
    preset: str = "medium",
    times: Iterable[Fraction] | None = None,
) -> None:
    """Write frames as H.264 mp4 (plays everywhere) or GIF, by suffix; the same bytes every time.

    Odd sizes get one repeated row or column, as yuv420p needs even ones. The file appears whole or
    not at all. Frames that come one by one are encoded one by one: no video is too long (but a GIF
    is put together in memory).

    Args:
        path: ends in .mp4, .avi, .mov, .mkv or .gif.
        frames: (F, H, W, 3) uint8 RGB, F ≥ 1, or an iterable of (H, W, 3) uint8 of one size.
        fps: frames a second.
        crf: quality of H.264, 0 (lossless) to 51.
        keyframe_every: exactly one key frame in so many, for random access; None = x264's choice.
        preset: of x264: how long it looks for a smaller file.
        times: of each frame in seconds; without them frames come at `fps`. One is taken after each
            frame, so they may become known with the frames. A frame whose time does not grow (of
            files joined without care) comes 1/`fps` after the one before, and those behind it keep
            their distances.

    Raises:
        VideoError: wrong shape or type of frames, an unknown suffix, a rate that is none, times in
            .avi, or a gap that the container cannot hold.
    """
    path = Path(path)
    if isinstance(frames, Tensor):
        frames = frames.numpy()
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise VideoError(f"{path}: frames {frames.shape} are not (F, H, W, 3)")
    if path.suffix.lower() not in (".mp4", ".avi", ".mov", ".mkv", ".gif"):
        raise VideoError(f"{path}: write .mp4, .avi, .mov, .mkv or .gif")
    rate = exact_rate(fps)
    if times is not None:
        if path.suffix.lower() == ".avi":
            raise VideoError(f"{path}: AVI holds frames of one rate only: write .mp4 or .mkv")
        times = _growing(path, times, rate)
    pictures = _checked(path, frames)
    first = next(pictures, None)  # before anything is made on disk
    if first is None:
        raise VideoError(f"{path}: there are no frames to write")
    pictures = chain([first], pictures)
    with atomic_file(path) as partial:
        if path.suffix.lower() == ".gif":
            still = list(pictures)
            lengths: float | list[float] = 1000 / fps
            if times is not None and len(still) > 1:  # Pillow takes no list of one length
                lengths = _lengths(list(islice(times, len(still))), fps)
            iio.imwrite(partial, np.stack(still), duration=lengths, loop=0)
        else:
            options = {"crf": str(crf), "preset": preset}
            if keyframe_every is not None:
                every = str(keyframe_every)
                options |= {"g": every, "keyint_min": every, "sc_threshold": "0"}
            _write_h264(partial, pictures, first.shape[0], first.shape[1], rate, options, times)


def exact_rate(fps: float) -> Fraction:
    """Frames a second as a fraction, also where a frame stands for minutes.

    Raises:
        VideoError: not a finite number above 0.
    """
    if not (math.isfinite(fps) and fps > 0 and math.isfinite(1 / fps)):
        raise VideoError(f"{fps:g} frames a second: give a finite number above 0")
    if fps < 1:
        return 1 / Fraction(1 / fps).limit_denominator(1001)
    return Fraction(fps).limit_denominator(1001)


def _growing(path: Path, times: Iterable[Fraction], rate: Fraction) -> Iterator[Fraction]:
    """Yield the times of frames from 0 on; one that does not grow comes 1 / rate after the last."""
    at, last = Fraction(0), None
    for time in times:
        if last is not None:
            check_gap(path, time - last)
            at += time - last if time > last else 1 / rate
        last = time
        yield at


def check_gap(path: Path, gap: Fraction) -> None:
    """Refuse a frame that comes later after the one before than the container can tell.

    Args:
        path: of the file that is written.
        gap: in seconds.

    Raises:
        VideoError: it is too long.
    """
    longest = LONGEST_OF_GIF if path.suffix.lower() == ".gif" else LONGEST_GAP
    if gap > longest:
        raise VideoError(
            f"{path}: a frame comes {float(gap):.6g} s after the one before, and at most "
            f"{longest} s can be written: convert the source to one rate"
        )


def _lengths(times: list[Fraction], fps: float) -> list[float]:
    """Milliseconds of each of some frames; the last takes as long as one at the mean rate."""
    gaps = [float(1000 * (after - before)) for before, after in pairwise(times)]
    return [*gaps, 1000 / fps]


def _checked(path: Path, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures, each (H, W, 3) uint8 and as large as the first."""
    shape: tuple[int, ...] | None = None
    for picture in pictures:
        is_rgb = picture.ndim == 3 and picture.shape[2] == 3 and 0 not in picture.shape
        if picture.dtype != np.uint8 or not is_rgb or picture.shape != (shape or picture.shape):
            raise VideoError(
                f"{path}: frames such as {picture.shape} {picture.dtype} are not (H, W, 3) uint8 "
                f"of one size"
            )
        shape = picture.shape
        yield picture


def _write_h264(
    path: Path,
    pictures: Iterable[np.ndarray],
    height: int,
    width: int,
    rate: Fraction,
    options: dict[str, str],
    times: Iterable[Fraction] | None,
) -> None:
    margin = ((0, height % 2), (0, width % 2), (0, 0))
    moments = None if times is None else iter(times)
    last = -1
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        if "g" in options:
            container.metadata["comment"] = GROUPS + options["g"]
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more threads change the bytes
        stream.options = {**options, **REPEATABLE}
        if moments is not None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for picture in pictures:
            even = np.ascontiguousarray(np.pad(picture, margin, mode="edge"))
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            if moments is not None:
                last = max(last + 1, round(next(moments) * TICKS))
                frame.pts, frame.time_base = last, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
