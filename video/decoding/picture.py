"""Decoded frames to pictures as they are meant to be seen.

| in the file | in the picture |
| --- | --- |
| matrix and range of its colours | one conversion; untagged is BT.601, limited range |
| pixels wider or higher than square | resampled: the width changes, the height stays |
| a display matrix | turned and mirrored, all eight ways |
| interlaced fields | deinterlaced (bwdif), one frame for each |
| alpha | laid over black |

Shape letters: H W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import av.filter
import numpy as np
import torch
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from video.clips import resize

# Chroma of more than 8 bits goes through another path of swscale, which smears it by default. So
# set, ten bits come out as eight do.
DEEP = Interpolation.POINT | Interpolation.ACCURATE_RND
# Kinds of side data that FFmpeg has and PyAV has no name for: EXIF (31), views of 3D, later ones.
UNNAMED = range(max(kind.value for kind in Type) + 1, 40)

_of_thread = threading.local()


def rgb(
    frame: av.VideoFrame, layout: str = "rgb24", interpolation: Interpolation | None = None
) -> np.ndarray:
    """Pixels (H, W, C) uint8 of a frame, converted by one converter for each thread.

    A frame's own `to_ndarray` makes a converter, with threads, for every frame: that takes four
    times as long, and hundreds of threads wait for the garbage collector.
    """
    if not hasattr(_of_thread, "converter"):
        _of_thread.converter = VideoReformatter()
    convert = _of_thread.converter.reformat
    return convert(frame, format=layout, interpolation=interpolation, threads=1).to_ndarray()


def over_black(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 RGBA laid over black: (H, W, 3) uint8."""
    color, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((color * alpha + 127) // 255).astype(np.uint8)


def to_picture(frame: av.VideoFrame, shape: Fraction = Fraction(1)) -> np.ndarray:
    """One frame as (H, W, 3) uint8 RGB of square pixels, turned as its metadata asks.

    Args:
        frame: decoded, not interlaced.
        shape: width of its pixels over their height.
    """
    if any(component.is_alpha for component in frame.format.components):
        picture = over_black(rgb(frame, "rgba"))
    elif any(component.bits > 8 for component in frame.format.components):
        picture = rgb(frame, interpolation=DEEP)
    else:
        picture = rgb(frame)
    if shape != 1:
        height, width = picture.shape[0], max(1, round(picture.shape[1] * shape))
        picture = resize(torch.from_numpy(picture)[None], (height, width))[0].numpy()
    return turned(picture, display_matrix(frame))


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """Return a, b, c, d: a stored (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # of PyAV, where any of it has no name
        data = _named_only(frame).side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def _named_only(frame: av.VideoFrame) -> av.VideoFrame:
    """The same frame, without side data that PyAV has no name for."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 90000),
    )
    for kind in UNNAMED:
        delete = graph.add("sidedata", f"mode=delete:type={kind}")
        last.link_to(delete)
        last = delete
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    named = graph.pull()
    assert isinstance(named, av.VideoFrame)
    return named


def turned(picture: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """A picture (H, W, 3) as a display matrix asks, to the nearest of the eight orientations."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    across, down = a, d
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, across, down = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def progressive(frames: Iterable[av.VideoFrame], stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The same frames, those that are interlaced made whole from their fields.

    Nothing is done to a video before its first interlaced frame; from there on all frames go
    through the filter, which leaves progressive ones alone.
    """
    weave: _Deinterlacer | None = None
    for frame in frames:
        if weave is not None and weave.size != (frame.width, frame.height, frame.format.name):
            yield from weave.finish()
            weave = None
        if weave is None and frame.interlaced_frame:
            weave = _Deinterlacer(frame, stream)
        if weave is None:
            yield frame
        else:
            yield from weave.push(frame)
    if weave is not None:
        yield from weave.finish()


class _Deinterlacer:
    """FFmpeg's bwdif for frames of one size."""

    def __init__(self, frame: av.VideoFrame, stream: VideoStream) -> None:
        self.size = (frame.width, frame.height, frame.format.name)
        self.graph = av.filter.Graph()
        source = self.graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or stream.time_base or Fraction(1, 90000),
        )
        weave = self.graph.add("bwdif", "mode=send_frame:deint=interlaced")
        sink = self.graph.add("buffersink")
        source.link_to(weave)
        weave.link_to(sink)
        self.graph.configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Frames that are ready after one more."""
        self.graph.push(frame)
        while True:
            try:
                ready = self.graph.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(ready, av.VideoFrame)
            yield ready

    def finish(self) -> Iterator[av.VideoFrame]:
        """The frames that waited for a next one."""
        yield from self.push(None)
