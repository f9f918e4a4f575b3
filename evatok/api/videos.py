"""Videos in memory: frames with their times.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from math import lcm
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evatok.api.arguments import whole
from evatok.core.errors import EvatokError
from tokenizer.evt.format import COMMON_TICK, MAX_COUNT
from video.decoding.container import VideoError
from video.reading import OnDamage, iter_timed
from video.writing import exact_rate, write_video


@dataclass(frozen=True, eq=False)
class Video:
    """Frames with the time of each.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, on the CPU; a NumPy array, or a list of frames (H, W, 3),
            is taken too.
        rate: frames a second; the mean where they come at uneven times.
        times: F seconds, ascending; if left out, frames come at `rate` from 0 on.
    """

    frames: Tensor
    rate: float = 25.0
    times: tuple[Fraction, ...] = ()

    def __post_init__(self) -> None:
        frames = _as_tensor(self.frames)
        object.__setattr__(self, "frames", frames)
        if isinstance(self.rate, bool) or not isinstance(self.rate, Real):
            raise EvatokError(f"rate is {self.rate!r}: give a number of frames a second")
        rate = exact_rate(self.rate if isinstance(self.rate, Fraction) else float(self.rate))
        object.__setattr__(self, "rate", float(self.rate))
        try:
            times = tuple(map(Fraction, self.times))
        except (TypeError, ValueError, OverflowError) as error:
            raise EvatokError(f"times: {error}: give seconds, as floats or Fractions") from None
        if not times:
            times = tuple(index / rate for index in range(len(frames)))
        if len(times) != len(frames):
            raise EvatokError(f"{len(times)} times for {len(frames)} frames: give one a frame")
        if any(after <= before for before, after in pairwise(times)):
            raise EvatokError("the times of frames do not ascend: sort the frames by time")
        object.__setattr__(self, "times", times)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, part: slice) -> Video:
        """Return the frames of a slice, with their times."""
        if not isinstance(part, slice):
            raise EvatokError(f"video[{part}]: give a slice, such as video[{part}:{part} + 1]")
        frames = self.frames[part] if (part.step or 1) > 0 else self.frames[:0]
        if not len(frames):
            raise EvatokError(f"no frames in {part}: the video has {len(self)}, taken forwards")
        return Video(frames, self.rate / (part.step or 1), self.times[part])

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        return f"Video({frames} frames, {width} × {height}, {self.rate:g} a second)"

    def save(self, path: Path | str) -> None:
        """Write the video: .mp4, .mov, .mkv, .avi or .gif, whole or not at all.

        Frames keep their times, counted from the first. Odd sides gain a row or column.
        """
        step = self.times[1] - self.times[0] if len(self) > 1 else Fraction(0)
        is_even = all(after - before == step for before, after in pairwise(self.times))
        write_video(path, self.frames, self.rate, times=None if is_even else self.times)

    @property
    def tick(self) -> Fraction:
        """A unit of time that all times are multiples of; 1/90 000 s where there is none."""
        unit = lcm(*(time.denominator for time in self.times))
        return Fraction(1, unit) if unit <= MAX_COUNT else COMMON_TICK

    def timed(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Yield each time in seconds with its frame (H, W, 3) uint8."""
        return zip(self.times, self.frames.numpy(), strict=True)


def _as_tensor(frames: object) -> Tensor:
    """Return frames (F, H, W, 3) uint8, or a list of frames (H, W, 3), as a tensor on the CPU."""
    if isinstance(frames, list | tuple) and frames and all(map(_is_array, frames)):
        parts = [_as_tensor(frame[None]) for frame in frames]
        if len({part.shape for part in parts}) > 1:
            raise EvatokError("the frames have several sizes: resize them to one")
        return torch.cat(parts)
    if isinstance(frames, np.ndarray):
        _check_frames(frames)
        if min(frames.strides) < 0 or not frames.flags.writeable:
            frames = frames.copy()  # torch cannot share it
        return torch.from_numpy(frames)
    if isinstance(frames, Tensor):
        _check_frames(frames)
        return frames.cpu()
    raise EvatokError(
        f"a {type(frames).__name__} is no video: give frames (F, H, W, 3) uint8 or a list of "
        "frames (H, W, 3); evatok.read_video(path) reads a file"
    )


def _is_array(frame: object) -> bool:
    return isinstance(frame, np.ndarray | Tensor)


def _check_frames(frames: np.ndarray | Tensor) -> None:
    """Refuse what is not (F, H, W, 3) uint8."""
    shape = tuple(frames.shape)
    if frames.ndim != 4 or 0 in shape or shape[-1] != 3:
        remedy = "frames are (F, H, W, 3) with F ≥ 1"
        if frames.ndim == 3 and shape[-1] == 3:
            remedy = "one picture is a video of one frame: frames[None]"
        elif frames.ndim == 4 and shape[1] == 3:
            remedy = "channels come last: frames.permute(0, 2, 3, 1)"
        elif frames.ndim == 4 and shape[0] == 3:
            remedy = "channels come last: frames.permute(1, 2, 3, 0)"
        raise EvatokError(f"frames have shape {shape}: {remedy}")
    name = str(frames.dtype).removeprefix("torch.")
    if name != "uint8":
        raise EvatokError(
            f"frames are {name}, not uint8 in [0, 255]: for floats in [−1, 1] give "
            "((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"
        )


def join(pictures: Sequence[tuple[Fraction, np.ndarray]], rate: float, name: str) -> Video:
    """Make a video of timed frames (H, W, 3) uint8.

    Raises:
        VideoError: they have several sizes.
    """
    if len({picture.shape for _, picture in pictures}) > 1:
        raise VideoError(f"{name}: changes its size on the way; convert it to one size")
    frames = torch.from_numpy(np.stack([picture for _, picture in pictures]))
    return Video(frames, rate, tuple(time for time, _ in pictures))


def mean_rate(times: Sequence[Fraction], otherwise: float) -> float:
    """Return frames a second; of fewer than two frames `otherwise`."""
    span = times[-1] - times[0] if len(times) > 1 else Fraction(0)
    return float((len(times) - 1) / span) if span else otherwise


def read_video(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    *,
    on_damage: OnDamage | None = None,
) -> Video:
    """Read a video of any size and length into memory.

    Args:
        path: a video, GIF or picture.
        start: first frame wanted.
        count: frames at most; all the rest if None.
        on_damage: told what a damaged file has lost; without it such a file is refused.

    Raises:
        VideoError: the file cannot be read, or ends before `start`.
        EvatokError: a count below 1 or a start below 0.
    """
    start = whole("start", start)
    count = None if count is None else whole("count", count)
    if start < 0 or (count is not None and count < 1):
        raise EvatokError(f"start {start}, count {count}: give a start ≥ 0 and a count ≥ 1")
    stop = None if count is None else start + count
    pictures = list(islice(iter_timed(path, on_damage), start, stop))
    if not pictures:
        raise VideoError(f"{path}: ends before frame {start}")
    return join(pictures, mean_rate([time for time, _ in pictures], 25.0), str(path))
