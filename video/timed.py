"""Videos with the time of every frame and with their sound: the writing side of a copy.

Shape letters: H W pixels.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
from av.audio.stream import AudioStream

from evatok.core.files import atomic_file
from video.decoding.container import VideoError, open_video
from video.decoding.stills import is_picture
from video.writing import REPEATABLE, check_gap

SUFFIXES = (".mp4", ".mov", ".mkv")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk's fault, not the sound's
SOUND_FORMAT = "matroska"  # takes every codec


def time_base_of(path: Path | str) -> Fraction:
    """Seconds of one tick of a video's frame times; of a picture, a millisecond."""
    if is_picture(Path(path)):
        return Fraction(1, 1000)
    container, stream = open_video(Path(path))
    with container:
        return stream.time_base or Fraction(1, 90_000)


def copy_sound(
    source: Path, target: Path, start: Fraction | None = None, end: Fraction | None = None
) -> bool:
    """Copy the first sound track of a file, undecoded, into a Matroska file.

    Args:
        source: a video or a picture.
        target: the file to write.
        start: seconds, as frames' times are told; packets that end before are left out.
        end: likewise, of packets that begin then or later.

    Returns:
        Whether there is one; of a part, whether any of it lies there.

    Raises:
        VideoError: the track cannot be read, or be written to Matroska.
    """
    if is_picture(source):
        return False
    with _reading_sound(source), av.open(str(source)) as container:
        if not container.streams.audio:
            return False
        stream, count = container.streams.audio[0], 0
        # without the random numbers of Matroska: the same source gives the same bytes
        options = {"fflags": "+bitexact"}
        with av.open(str(target), "w", format=SOUND_FORMAT, container_options=options) as output:
            try:
                copy = output.add_stream_from_template(stream)
            except ValueError as error:
                raise VideoError(
                    f"{source}: the sound cannot be kept ({error}): leave it out with --no-sound"
                ) from error
            for packet in container.demux(stream):
                if packet.dts is None:
                    continue
                time = packet.dts if packet.pts is None else packet.pts
                unit = packet.time_base or stream.time_base or Fraction(1)
                if end is not None and time * unit >= end:
                    break
                if start is None or (time + (packet.duration or 0)) * unit > start:
                    packet.stream = copy
                    output.mux(packet)
                    count += 1
    return count > 0 or (start is None and end is None)


def write_timed(
    path: Path,
    frames: Iterable[tuple[int, np.ndarray]],
    tick: Fraction,
    sound: Path | None = None,
    crf: int = 18,
) -> int:
    """Write H.264 with given frame times, and sound as it is.

    A picture with an odd side is written in 4:4:4, which keeps its size.

    Args:
        path: ends in .mp4, .mov or .mkv.
        frames: (ticks, (H, W, 3) uint8 RGB), times ascending, one size.
        tick: seconds of one tick.
        sound: a file whose sound track is copied, undecoded.
        crf: quality of H.264, 0 (lossless) to 51.

    Returns:
        Number of frames written.

    Raises:
        VideoError: an unknown suffix, no frames, a gap of hours between two, or a sound codec that
            the container cannot take.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{path}: write {', '.join(SUFFIXES)}")
    count, track = 0, None
    rest = iter(frames)
    head = list(islice(rest, 2))
    step = (head[1][0] - head[0][0]) * tick if len(head) > 1 else Fraction(1, 25)
    check_gap(path, step)
    options = {"fflags": "+bitexact"}
    with (
        atomic_file(path) as partial,
        av.open(str(partial), "w", container_options=options) as container,
    ):
        stream, last = None, None
        for ticks, picture in chain(head, rest):
            if stream is None:
                # the rate is how long the last frame lasts; x264 would guess 24 a second
                rate = (1 / step).limit_denominator(1 << 16)
                stream = container.add_stream("libx264", rate=rate)
                height, width = picture.shape[:2]
                stream.height, stream.width = height, width
                is_odd = height % 2 or width % 2
                stream.pix_fmt = "yuv444p" if is_odd else "yuv420p"
                stream.codec_context.time_base = tick
                stream.time_base = tick
                stream.codec_context.thread_count = 1  # more threads change the bytes
                stream.options = {"crf": str(crf), **REPEATABLE}
                if sound is not None:
                    track = _sound_track(container, sound, path)
            if last is not None:
                check_gap(path, (ticks - last) * tick)
            last = ticks
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = ticks, tick
            container.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise VideoError(f"{path}: there are no frames to write")
        container.mux(stream.encode())
        if sound is not None and track is not None:
            with _reading_sound(path):
                _mux_sound(container, sound, track)
    return count


@contextmanager
def _reading_sound(path: Path) -> Iterator[None]:
    """Tell of damaged sound in one line."""
    try:
        yield
    except VideoError:  # tells more
        raise
    except (av.error.FFmpegError, ValueError) as error:
        if getattr(error, "errno", None) in FULL:
            raise
        said = getattr(error, "strerror", error)
        raise VideoError(
            f"{path}: the sound is damaged ({said}): leave it out with --no-sound"
        ) from error


def _sound_track(container: av.container.OutputContainer, sound: Path, path: Path) -> AudioStream:
    with ExitStack() as stack:
        with _reading_sound(path):
            source = stack.enter_context(av.open(str(sound)))
            if not source.streams.audio:
                raise VideoError(
                    f"{path}: the sound is damaged (it has no track): leave it out with --no-sound"
                )
            template = source.streams.audio[0]
        name = template.codec_context.name
        try:
            return container.add_stream_from_template(template)
        except ValueError as error:
            raise VideoError(
                f"{path}: {path.suffix} cannot hold sound of codec {name} ({error}); write .mkv, "
                "or leave the sound out with --no-sound"
            ) from error


def _mux_sound(container: av.container.OutputContainer, sound: Path, track: AudioStream) -> None:
    with av.open(str(sound)) as source:
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                container.mux(packet)
