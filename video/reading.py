"""Read video files: frames, their times, damage.

Decoding is PyAV's (pictures and animated WebP: Pillow's), in presentation order;
`video.decoding.picture` says how a frame becomes a picture. Frames are uint8 (F, H, W, 3) RGB.
Damage is never silent: a file that has lost frames raises `VideoError`, or is read as far as it can
be and its losses told to the caller.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import groupby
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
import torch
from av.video.stream import VideoStream
from torch import Tensor

from video.clips import Resizing, Size, fitted
from video.decoding.container import (
    Damage,
    Survey,
    VideoError,
    frame_rate,
    open_video,
    pixel_shape,
    survey,
)
from video.decoding.picture import progressive, to_picture
from video.decoding.stills import is_picture, iter_animation, survey_animation

READING = 2  # changes when a file gives other pixels than before: part of what caches go by
CHUNK = 32  # frames resized together: bounds the memory of large videos
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders
REORDERED = 16  # frames within which the guessed times of an AVI are put in order
LEAD = 5.0  # seconds that are decoded before a wanted frame: its key frame may refer to others
OnDamage = Callable[[Damage], None]


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a file, its picture upright and of square pixels."""

    path: Path
    width: int
    height: int
    fps: float  # the mean where frames come at uneven times
    num_frames: int | None  # None where the container does not tell
    rotation: int  # degrees that the picture was turned by, a multiple of 90


def probe(path: Path | str) -> VideoInfo:
    """Size, rate and rotation of a video; decodes one frame.

    Raises:
        VideoError: not a readable video.
    """
    path = Path(path)
    if is_picture(path):
        seen, picture = survey_animation(path), next(iter_animation(path))[1]
        return VideoInfo(path, picture.shape[1], picture.shape[0], seen.mean_rate, seen.packets, 0)
    container, stream = open_video(path)
    with container:
        shape = pixel_shape(path, stream)
        try:
            frame = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: the first frame is damaged ({error.strerror})") from error
        if frame is None:
            raise VideoError(f"{path}: has no frames")
        height, width = to_picture(frame, shape).shape[:2]
        rate, count = frame_rate(stream), stream.frames or None
        return VideoInfo(path, width, height, float(rate), count, int(frame.rotation) % 360)


def frame_times(path: Path | str) -> Survey:
    """The times of a file's frames, without decoding them.

    Raises:
        VideoError: not a readable video.
    """
    path = Path(path)
    return survey_animation(path) if is_picture(path) else survey(path)


def iter_frames(path: Path | str, on_damage: OnDamage | None = None) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB one by one, in presentation order.

    Args:
        path: a video file.
        on_damage: told what a damaged file has lost, after its last frame; every frame that can be
            decoded is given. Without it a damaged file raises.

    Raises:
        VideoError: not a video, no frame at all, or damaged: as far as its packets tell before the
            first frame, else where a frame cannot be decoded.
    """
    for _, picture in iter_timed(path, on_damage):
        yield picture


def iter_timed(
    path: Path | str, on_damage: OnDamage | None = None, start: float = 0.0
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """As `iter_frames`, each with its time in seconds; where none is told, at the mean rate.

    Args:
        path: a video file.
        on_damage: as for `iter_frames`.
        start: seconds after the first frame from which frames are wanted. Earlier ones may come
            too: decoding begins at a key frame `LEAD` seconds before, or at the first frame. What
            lies before is neither read nor looked through for damage.
    """
    path = Path(path)
    if start > LEAD and not is_picture(path):
        yield from _iter_from(path, start - LEAD, on_damage)
        return
    if is_picture(path):
        yield from iter_animation(path)
        return
    seen = survey(path)
    if seen.reason and on_damage is None:
        raise VideoError(f"{path}: {_damage(path, seen)}")
    errors, count = _Errors(), 0
    container, stream = open_video(path)
    with container:
        shape, rate = pixel_shape(path, stream), frame_rate(stream)
        for frame in _presented(container, stream, errors, on_damage is not None):
            if errors.reason and on_damage is None:
                break
            pts, unit = frame.pts, frame.time_base
            time = count / rate if pts is None or unit is None else pts * unit
            count += 1
            yield Fraction(time), to_picture(frame, shape)
    if (errors.reason or seen.reason) and count:
        if on_damage is None:
            raise VideoError(f"{path}: {_damage(path, seen)}")
        on_damage(_of(seen, count, errors))
    if count == 0:
        raise VideoError(f"{path}: has no frames{errors.reason and f' ({errors.reason})'}")


def _iter_from(
    path: Path, start: float, on_damage: OnDamage | None
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Frames from the last key frame at or before a time on."""
    errors, count = _Errors(), 0
    container, stream = open_video(path)
    with container:
        unit = stream.time_base
        if unit is None:
            raise VideoError(f"{path}: tells no times: encode it from its start")
        first = stream.start_time or 0
        try:
            container.seek(first + round(start / unit), stream=stream)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: cannot be read from {start:g} s on ({error})") from error
        shape = pixel_shape(path, stream)
        for frame in _presented(container, stream, errors, on_damage is not None, late=True):
            if errors.reason and on_damage is None:
                raise VideoError(f"{path}: damaged after {start:g} s ({errors.reason})")
            if frame.pts is not None:
                count += 1
                yield Fraction(frame.pts * (frame.time_base or unit)), to_picture(frame, shape)
    if errors.reason and on_damage is not None:
        on_damage(Damage(count, count + errors.packets, errors.reason))


def first_time(path: Path | str) -> Fraction:
    """Time of a video's first frame in seconds, without decoding it where the container tells.

    An AVI tells when its data begin, not its first frame.
    """
    path = Path(path)
    if not is_picture(path):
        container, stream = open_video(path)
        with container:
            begin, unit = stream.start_time, stream.time_base
            if container.format.name != "avi" and begin is not None and unit is not None:
                return Fraction(begin * unit)
    # whoever reads the frames is told of damage
    return next(iter_timed(path, on_damage=lambda _: None))[0]


@dataclass
class _Errors:
    """Fault of a decoder."""

    packets: int = 0
    patched: int = 0  # frames that the decoder filled up
    broken: str = ""  # why the container could not be read on

    @property
    def reason(self) -> str:
        parts = [
            f"{self.packets} could not be decoded" if self.packets else "",
            f"{self.patched} only in part" if self.patched else "",
            self.broken,
        ]
        return ", ".join(part for part in parts if part)


def _presented(
    container: av.container.InputContainer,
    stream: VideoStream,
    errors: _Errors,
    one_by_one: bool,
    late: bool = False,
) -> Iterator[av.VideoFrame]:
    """Whole pictures with ascending times; arguments as of `_decoded`."""
    frames = _decoded(container, stream, errors, one_by_one, late)
    if container.format.name == "avi":
        frames = _ascending(frames)
    return progressive(frames, stream)


def _ascending(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Give the i-th frame the i-th smallest time.

    AVI keeps no times. FFmpeg guesses them from the order of packets, and guesses wrong where two
    frames share a packet (XviD, DivX): 1, 2, 4, 3, 5, 7, 6. The frames themselves are in order.
    """
    waiting: deque[av.VideoFrame] = deque()
    times: list[int] = []

    def first() -> av.VideoFrame:
        frame = waiting.popleft()
        if frame.pts is not None:
            frame.pts = heappop(times)
        return frame

    for frame in frames:
        waiting.append(frame)
        if frame.pts is not None:
            heappush(times, frame.pts)
        if len(waiting) > REORDERED:
            yield first()
    while waiting:
        yield first()


def _decoded(
    container: av.container.InputContainer,
    stream: VideoStream,
    errors: _Errors,
    one_by_one: bool,
    late: bool = False,
) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded; what cannot be is counted.

    Args:
        container: open.
        stream: its video.
        errors: is filled.
        one_by_one: decode with one thread: with more a damaged file loses more frames, and not
            always the same.
        late: decoding begins in the middle.
    """
    begun = False
    decoder: av.VideoCodecContext = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in WITH_ALPHA:
        # FFmpeg's own decoders leave alpha out.
        with_alpha = av.CodecContext.create(WITH_ALPHA[decoder.name], "r")
        assert isinstance(with_alpha, av.VideoCodecContext)
        decoder = with_alpha
    if one_by_one:
        stream.thread_type = "NONE"
        decoder.thread_count = 1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, ValueError) as error:
            errors.broken = f"the container breaks off: {error}"
            packet = None
        is_last = packet is None or (packet.size == 0 and packet.dts is None)
        try:
            frames = decoder.decode(None if is_last else packet)
        except EOFError:
            return
        except (av.error.FFmpegError, ValueError):
            errors.packets += 1
            continue
        for frame in frames:
            assert isinstance(frame, av.VideoFrame)
            if late and not begun:  # what came before it refers to frames before the start
                errors.packets = 0
            begun = True
            errors.patched += frame.is_corrupt
            if frame.time_base is None and stream.time_base is not None:
                frame.time_base = stream.time_base
            yield frame
        if is_last:
            return


def _of(seen: Survey, decoded: int, errors: _Errors) -> Damage:
    reason = ", ".join(part for part in (seen.reason, errors.reason) if part)
    return Damage(decoded, max(seen.packets + seen.missing, decoded), reason)


def _damage(path: Path, seen: Survey) -> Damage:
    """Losses of a damaged file: decodes all of it."""
    errors = _Errors()
    container, stream = open_video(path)
    with container:
        decoded = sum(1 for _ in _decoded(container, stream, errors, True))
    return _of(seen, decoded, errors)


def damage_of(path: Path | str) -> Damage | None:
    """Losses of a file after decoding all of it; None of a whole one.

    Raises:
        VideoError: not a readable video.
    """
    path = Path(path)
    if is_picture(path):
        survey_animation(path)
        return None
    damage = _damage(path, survey(path))
    return damage if damage.reason else None


def read_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    size: Size | None = None,
    on_damage: OnDamage | None = None,
    resizing: Resizing = "bytes",
) -> Tensor:
    """Frames of a video.

    Args:
        path: a video file.
        start: first frame wanted.
        count: how many at most; all the rest if None.
        size: resize to cover this and crop the centre, while reading.
        on_damage: see `iter_frames`; not told of damage behind the frames wanted.
        resizing: as in `video.clips.fitted`, where a size is given.

    Returns:
        (F, H, W, 3) uint8 RGB, or with "float" float32 in [0, 1]; F ≥ 1.

    Raises:
        VideoError: see `iter_frames`; also if the video ends before `start`.
    """
    parts: list[Tensor] = []
    chunk: list[np.ndarray] = []

    def flush() -> None:
        if chunk:
            for _, run in groupby(chunk, key=lambda picture: picture.shape):
                frames = torch.from_numpy(np.stack(list(run)))
                parts.append(frames if size is None else fitted(frames, size, resizing))
                if parts[-1].shape[1:] != parts[0].shape[1:]:
                    raise VideoError(f"{path}: changes its size on the way; read it with a size")
            chunk.clear()

    for number, picture in enumerate(iter_frames(path, on_damage)):
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
