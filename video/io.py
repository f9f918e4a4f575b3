"""Video files to frames and back.

Decoding is PyAV's: anything FFmpeg reads, in presentation order, turned upright. Frames are uint8
(F, H, W, 3) RGB. Damage is never silent: it raises `VideoError`, or, where the caller allows it,
ends the video at the damage.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path

import av
import av.container
import av.error
import imageio.v3 as iio
import numpy as np
import torch
from av.video.stream import VideoStream
from torch import Tensor

from training.errors import EvatokError
from training.files import atomic_file
from video.clips import resize_crop

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg")
GROUPS = "closed groups of frames: "  # then their size: how files for random access are marked
CHUNK = 32  # frames resized together: bounds the memory of large videos


class VideoError(EvatokError):
    """A file that cannot be read (or written) as video; the message names it and says why."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself, after rotation."""

    path: Path
    width: int
    height: int
    fps: float
    num_frames: int | None  # None where the container does not tell
    rotation: int  # degrees that the picture was turned by, a multiple of 90


def open_video(path: Path) -> tuple[av.container.InputContainer, VideoStream]:
    """A file and its first video stream.

    Raises:
        VideoError: not a readable video.
    """
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video: give the files in it")
    if path.exists() and not path.is_file():
        raise VideoError(f"{path}: is a pipe or a device: copy it to a file first")
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: not readable as video ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: has no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return container, stream


def group_size(container: av.container.InputContainer) -> int | None:
    """Frames between key frames of a file that was written for random access; None of others."""
    start, mark, size = container.metadata.get("comment", "").partition(GROUPS)
    return int(size) if mark and not start and size.isdigit() else None


def upright(frame: av.VideoFrame) -> np.ndarray:
    """One frame as (H, W, 3) uint8 RGB, turned as its metadata asks."""
    picture = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, round(frame.rotation / 90) % 4)


def probe(path: Path | str) -> VideoInfo:
    """Size, rate and rotation of a video; decodes one frame.

    Raises:
        VideoError: not a readable video.
    """
    path = Path(path)
    container, stream = open_video(path)
    with container:
        try:
            frame = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: the first frame is damaged ({error.strerror})") from error
        if frame is None:
            raise VideoError(f"{path}: has no frames")
        height, width = upright(frame).shape[:2]
        rate = stream.average_rate or stream.base_rate or Fraction(25)
        return VideoInfo(
            path, width, height, float(rate), stream.frames or None, int(frame.rotation) % 360
        )


def iter_frames(path: Path | str, allow_damaged: bool = False) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB one by one, in presentation order.

    Args:
        path: a video file.
        allow_damaged: end at the damage instead of raising.

    Raises:
        VideoError: not a video, no frame at all, or damaged on the way.
    """
    for _, picture in iter_timed(path, allow_damaged):
        yield picture


def iter_timed(
    path: Path | str, allow_damaged: bool = False
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """As `iter_frames`, each with its time in seconds; where none is told, at the mean rate."""
    path = Path(path)
    container, stream = open_video(path)
    count = 0
    rate = stream.average_rate or stream.base_rate or Fraction(25)
    with container:
        try:
            for frame in container.decode(stream):
                pts, unit = frame.pts, frame.time_base
                time = count / rate if pts is None or unit is None else pts * unit
                count += 1
                yield time, upright(frame)
        except (av.error.FFmpegError, ValueError) as error:
            if count == 0 or not allow_damaged:
                raise VideoError(f"{path}: damaged after {count} frames ({error})") from error
    if count == 0:
        raise VideoError(f"{path}: has no frames")


def read_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    size: int | None = None,
    allow_damaged: bool = False,
) -> Tensor:
    """Frames of a video.

    Args:
        path: a video file.
        start: first frame wanted.
        count: how many at most; all the rest if None.
        size: resize the short side to this and crop the centre, while reading.
        allow_damaged: see `iter_frames`.

    Returns:
        (F, H, W, 3) uint8 RGB; F ≥ 1.

    Raises:
        VideoError: see `iter_frames`; also if the video ends before `start`.
    """
    parts: list[Tensor] = []
    chunk: list[np.ndarray] = []

    def flush() -> None:
        if chunk:
            for _, run in groupby(chunk, key=lambda picture: picture.shape):
                frames = torch.from_numpy(np.stack(list(run)))
                parts.append(frames if size is None else resize_crop(frames, size))
                if parts[-1].shape[1:] != parts[0].shape[1:]:
                    raise VideoError(f"{path}: changes its size on the way; read it with a size")
            chunk.clear()

    for number, picture in enumerate(iter_frames(path, allow_damaged)):
        if number < start:
            continue
        if count is not None and number >= start + count:
            break
        chunk.append(picture)
        if len(chunk) == CHUNK:
            flush()
    flush()
    if not parts:
        raise VideoError(f"{path}: ends before frame {start}")
    return torch.cat(parts)


def write_video(
    path: Path | str,
    frames: Tensor | np.ndarray | Iterable[np.ndarray],
    fps: float = 25.0,
    crf: int = 18,
    keyframe_every: int | None = None,
    preset: str = "medium",
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

    Raises:
        VideoError: wrong shape or type of frames, or an unknown suffix.
    """
    path = Path(path)
    if isinstance(frames, Tensor):
        frames = frames.numpy()
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise VideoError(f"{path}: frames {frames.shape} are not (F, H, W, 3)")
    if path.suffix.lower() not in (".mp4", ".avi", ".mov", ".mkv", ".gif"):
        raise VideoError(f"{path}: write .mp4, .avi, .mov, .mkv or .gif")
    pictures = _checked(path, frames)
    first = next(pictures, None)  # before anything is made on disk
    if first is None:
        raise VideoError(f"{path}: there are no frames to write")
    pictures = chain([first], pictures)
    with atomic_file(path) as partial:
        if path.suffix.lower() == ".gif":
            iio.imwrite(partial, np.stack(list(pictures)), duration=1000 / fps, loop=0)
        else:
            options = {"crf": str(crf), "preset": preset}
            if keyframe_every is not None:
                every = str(keyframe_every)
                options |= {"g": every, "keyint_min": every, "sc_threshold": "0"}
            _write_h264(partial, pictures, first.shape[0], first.shape[1], fps, options)


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
    fps: float,
    options: dict[str, str],
) -> None:
    margin = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        if "g" in options:
            container.metadata["comment"] = GROUPS + options["g"]
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more threads change the bytes
        # x264's macroblock tree reads memory that nobody has written: other bytes now and then
        stream.options = {**options, "mbtree": "0", "flags": "+bitexact"}
        for picture in pictures:
            even = np.ascontiguousarray(np.pad(picture, margin, mode="edge"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
