"""Contents of a file: its streams, the times of its packets, missing parts.

Only packets are looked at here; nothing is decoded.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import overload

import av
import av.container
import av.error
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream

from evatok.core.errors import EvatokError
from evatok.core.suggest import did_you_mean_file

GROUPS = "closed groups of frames: "  # then their size: how files for random access are marked
STILLS = ("mjpeg", "png", "bmp", "webp", "gif")  # codecs of cover pictures
SCHEMES = ("http", "https", "ftp", "rtsp", "rtmp", "s3", "gs")
HOLE = 256  # bytes of no stream, more than the headers between two packets take
MOST_STRETCHED = 8  # pixels wider or higher than this are a damaged header


class VideoError(EvatokError):
    """A file that cannot be read (or written) as video; the message names it and says why."""


def damaged_allowed(share: float, total: int) -> int:
    """Damaged files of a set that do not stop a run: a share of them, and one unless it is 0."""
    return max(int(share * total), 1) if share > 0 else 0


@dataclass(frozen=True)
class Damage:
    """Losses of a file.

    Attributes:
        decoded: frames that can be decoded.
        expected: frames that the file declares or has packets for.
        reason: what is wrong.
    """

    decoded: int
    expected: int
    reason: str

    def __str__(self) -> str:
        return f"damaged: {self.decoded} of {self.expected} frames ({self.reason})"


class Times(Sequence[Fraction]):
    """Times in seconds, kept as ticks: eight bytes each, so that a long film's take little memory.

    Args:
        ticks: integers.
        unit: seconds a tick.
    """

    def __init__(self, ticks: np.ndarray, unit: Fraction) -> None:
        self.ticks, self.unit = ticks, unit

    def __len__(self) -> int:
        return len(self.ticks)

    @overload
    def __getitem__(self, place: int) -> Fraction: ...
    @overload
    def __getitem__(self, place: slice) -> Times: ...
    def __getitem__(self, place: int | slice) -> Fraction | Times:
        if isinstance(place, slice):
            return Times(self.ticks[place], self.unit)
        return int(self.ticks[place]) * self.unit

    def __iter__(self) -> Iterator[Fraction]:
        return (int(tick) * self.unit for tick in self.ticks)


@dataclass(frozen=True)
class Survey:
    """Frames of a file as its packets declare them.

    Attributes:
        times: of the frames in seconds, in order; () where the container keeps none.
        packets: frames that the file has data for.
        missing: frames that it declares, or that its times leave out, and has no data for.
        reason: what is wrong; "" if nothing is.
    """

    times: Sequence[Fraction]
    packets: int
    missing: int = 0
    reason: str = ""

    @property
    def mean_rate(self) -> float:
        """Frames a second, from the first frame to the last; 25 of fewer than two."""
        if len(self.times) < 2 or self.times[-1] == self.times[0]:
            return 25.0
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))

    @cached_property
    def is_even(self) -> bool:
        """Whether every frame comes within a tenth of a frame of where one mean rate puts it.

        Containers round to their own ticks, of a millisecond at the coarsest.
        """
        count = len(self.times)
        if count < 3:
            return True
        step = (self.times[-1] - self.times[0]) / (count - 1)
        room = max(step / 10, Fraction(1, 1000))
        return all(abs(t - self.times[0] - n * step) <= room for n, t in enumerate(self.times))


def open_video(path: Path) -> tuple[av.container.InputContainer, VideoStream]:
    """Open a file and choose its video stream.

    An attached picture is no video. Of several streams the default one is taken, moving pictures
    before single ones, then the first.

    Raises:
        VideoError: not a readable video.
    """
    if not path.is_file():
        scheme, slash, rest = str(path).partition(":/")  # a path has lost the second slash
        if slash and scheme in SCHEMES:
            raise VideoError(f"{scheme}://{rest}: addresses are not read: download the file first")
        raise VideoError(f"{path}: {_no_file(path)}")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
        raise VideoError(f"{path}: not readable as video ({reason})") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or any(s.codec_context is None for s in streams):
        told = "a cover picture only" if container.streams.video and not streams else ""
        container.close()
        raise VideoError(f"{path}: has no video stream{told and f', {told}'}")
    is_alone = len(streams) == 1

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        is_still = not is_alone and stream.codec_context.name in STILLS
        return is_still, not stream.disposition & Disposition.default, stream.index

    stream = min(streams, key=rank)
    stream.thread_type = "AUTO"
    return container, stream


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder, not a video file"
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which is not there"
    return "is no ordinary file" if path.exists() else f"no such file{did_you_mean_file(path)}"


def group_size(container: av.container.InputContainer) -> int | None:
    """Frames between key frames of a file that was written for random access; None of others."""
    start, mark, size = container.metadata.get("comment", "").partition(GROUPS)
    return int(size) if mark and not start and size.isdigit() and int(size) > 0 else None


def frame_rate(stream: VideoStream) -> Fraction:
    """Mean frames a second; 25 where a file tells none."""
    return stream.average_rate or stream.base_rate or Fraction(25)


def pixel_shape(path: Path, stream: VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 within one percent of it.

    Raises:
        VideoError: a shape that no camera has.
    """
    shape = stream.sample_aspect_ratio or Fraction(1)
    if shape <= 0 or abs(shape - 1) <= Fraction(1, 100):
        return Fraction(1)
    if not Fraction(1, MOST_STRETCHED) <= shape <= MOST_STRETCHED:
        raise VideoError(f"{path}: pixels {shape} as wide as high: its header is damaged")
    return shape


def survey(path: Path) -> Survey:
    """Go through all packets of a file and compare them with what it declares.

    | container | what counts as lost |
    | --- | --- |
    | MP4, MOV | entries of the index without data |
    | AVI | frames of the header without data |
    | Matroska, WebM | a hole in time where bytes belong to no stream; an end before the told one |
    | all | packets that the container calls corrupt, or that it cannot go on after |

    Raises:
        VideoError: not a readable video.
    """
    container, stream = open_video(path)
    with container:
        unit, kind = stream.time_base or Fraction(1, 90000), container.format.name
        declared = stream.frames
        if "mov" in kind:  # an edit list leaves frames out of the index, and means it
            declared = min(declared, len(stream.index_entries)) if declared else 0
        elif kind != "avi":
            declared = 0
        starts, lengths = array("q"), array("q")  # of frames, in ticks
        packets = corrupt = holes = end = 0
        broken = ""
        hole_at: list[int] = []
        try:
            for packet in container.demux():
                if packet.size == 0 and packet.dts is None:
                    continue  # the end of a stream
                place, size = packet.pos, packet.size
                is_behind_hole = place is not None and place - end > HOLE and end > 0
                end = max(end, (place or 0) + size)
                if packet.stream_index != stream.index:
                    holes += is_behind_hole
                    continue
                packets += 1
                corrupt += packet.is_corrupt
                if packet.pts is not None and not packet.is_discard:
                    starts.append(packet.pts)
                    lengths.append(packet.duration or 0)
                    if is_behind_hole or holes:
                        hole_at.append(packet.pts)
                holes = 0
        except (av.error.FFmpegError, ValueError) as error:
            broken = f"the container breaks off: {_reason(error)}"
        ticks = np.sort(np.asarray(starts))
        missing = max(declared - packets, 0)
        reason = "the file ends early" if missing else ""
        if "matroska" in kind:
            lost, ends = _lost_in_time(
                ticks, np.asarray(lengths), hole_at, _told_end(container, stream, unit)
            )
            if lost:
                missing, reason = lost, "the file ends early" if ends else "a hole in the file"
        if corrupt and not reason:
            reason = f"{corrupt} packets are corrupt"
        times = Times(ticks, unit) if len(ticks) == packets else ()
        return Survey(times, packets, missing, broken or reason)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _told_end(
    container: av.container.InputContainer, stream: VideoStream, unit: Fraction
) -> int | None:
    """Declared end of a Matroska file's video, in ticks; None if it declares none."""
    told = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if told is not None:
        hours, minutes, seconds = (Fraction(part) for part in told.groups())
        return round((hours * 3600 + minutes * 60 + seconds) / unit)
    if len(container.streams) == 1 and container.duration:
        return round(Fraction(container.duration, av.time_base) / unit)
    return None


def _lost_in_time(
    ticks: np.ndarray, lengths: np.ndarray, behind_holes: list[int], told_end: int | None
) -> tuple[int, bool]:
    """Frames that the times leave out, and whether (only) the end is missing.

    A pause is no damage: a gap counts where bytes of no stream lie, and the end where it is farther
    from the last frame than any two frames are from each other.

    Args:
        ticks: times of the frames, (F) in order.
        lengths: of the frames, (F) in any order; 0 where none is told.
        behind_holes: times of frames behind bytes of no stream.
        told_end: declared end, in ticks.
    """
    told = np.sort(lengths[lengths > 0])
    if not len(told):
        return 0, False
    usual = int(told[len(told) // 2])
    gaps, is_hole = np.diff(ticks), np.isin(ticks[1:], behind_holes)
    holes = gaps[is_hole & (gaps >= 1.5 * usual)]
    lost = sum(round(int(gap) / usual) - 1 for gap in holes)
    if told_end is None:
        return lost, False
    longest = max(usual, int(gaps[~is_hole].max(initial=0)))
    behind = told_end - (int(ticks[-1]) + usual)
    at_end = round(behind / usual) if behind > 1.5 * longest else 0
    return lost + at_end, not lost
