"""Clips of a set of videos, drawn by a rule, with a key for each that caches go by.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from evaluation.encoders.base import resize_frames
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.readers import Video, find_videos
from evatok.core.config import Config, PictureSize
from evatok.core.distributed import Place, gather
from evatok.core.errors import EvatokError
from video.clips import pad_last, to_clip, window_starts
from video.decoding.container import VideoError
from video.reading import READING

logger = logging.getLogger(__name__)

Window = Literal["first", "random", "all"]
ALONE = Place()
AHEAD = 16  # videos of which a first window is decoded before it is asked for
READERS = 4  # threads that decode them
CLIPS = 1 << 32  # numbers that a video has for its clips
WINDOWS: tuple[Window, ...] = ("first", "random", "all")


class Cut(Config):
    """How clips are cut from videos.

    Attributes:
        num_frames: F; of a shorter video the last frame is repeated.
        size: resized to cover it (antialiased), then the centre cut out; one side, or [height,
            width].
        window: which frames of a video: the first F, F in a row at random, or every run of F
            without overlap.
        seed: of random windows and of the draw.
        count: clips drawn from all windows with `random.Random(seed).sample`, as published
            protocols do; None: all of them.
        shrink: then resized to this side, as K600's protocols do first.
        shrink_by: "antialias", or "legacy" (TensorFlow 1: no half-pixel centres, aliased).
    """

    num_frames: int = 16
    size: PictureSize = 128
    window: Window = "first"
    seed: int = 42
    count: int | None = None
    shrink: int | None = None
    shrink_by: Literal["antialias", "legacy"] = "antialias"

    def finish(self, clip: Tensor) -> Tensor:
        """Resize a clip (3, F, H, W) in [−1, 1] as `shrink` says."""
        if self.shrink is None:
            return clip
        resize = legacy_resize if self.shrink_by == "legacy" else _antialiased
        return resize(clip[None], self.shrink)[0]


def _antialiased(clips: Tensor, size: int) -> Tensor:
    return resize_frames(clips, size, antialias=True)


def legacy_resize(clips: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 did it: target pixel i looks at i · scale, corner to corner.

    Args:
        clips: (B, 3, F, H, W).
        size: side of the result.

    Returns:
        (B, 3, F, size, size).
    """
    for axis in (-2, -1):
        length = clips.shape[axis]
        place = torch.arange(size, dtype=torch.float64) * (length / size)
        low = place.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (place - low).to(clips.dtype)
        if axis == -2:
            share = share[:, None]
        first, second = clips.index_select(axis, low), clips.index_select(axis, high)
        clips = first + (second - first) * share
    return clips


class Item(NamedTuple):
    """One clip of a source.

    Attributes:
        number: order in the source, not without gaps.
        name: a clip and its reconstruction on the other side share one.
        key: what its features are filed by.
        clip: (3, F, H, W) float32 in [−1, 1]; None in place of an unwanted one.
    """

    number: int
    name: str
    key: str
    clip: Tensor | None


class Source(Protocol):
    """Clips with keys, gone through in order by one process, or each by one of several."""

    def walk(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        place: Place = ALONE,
    ) -> Iterator[Item]:
        """This process's clips; the items of all processes together are those of one alone."""
        ...

    def share(self) -> None:
        """Exchange what was learned on the way; every process calls this after its walk."""
        ...


class _Taken(NamedTuple):
    """A video of a walk: its number, identity, windows as far as known, and its frames to be."""

    number: int
    digest: str
    starts: list[int] | None
    reading: Future[Tensor] | None


class VideoClips:
    """Clips of all videos of an input, decoded while they are gone through.

    Attributes:
        videos: all of them, sorted by name.
        damaged: why a video could not be read, by name; filled while the clips are gone through.
            Such a video gives no clip.
        padded: videos shorter than a clip, whose last frame was repeated.

    A clip's name is that of its video without the suffix, and its first frame.
    """

    def __init__(self, path: str | Path, cut: Cut | None = None) -> None:
        """Find the videos.

        Raises:
            FileNotFoundError: there is no such path.
            EvatokError: it has no videos, or no such window.
        """
        self.path, self.cut = Path(path), cut or Cut()
        self.videos = find_videos(path)
        self.damaged: dict[str, str] = {}
        self.padded: list[str] = []

    def __iter__(self) -> Iterator[Tensor]:
        """Clips (3, F, H, W) float32 in [−1, 1], in order of the videos."""
        for item in self.walk(lambda key: True, None):
            assert item.clip is not None
            yield item.clip

    def fingerprint(self) -> str:
        """sha256 in hex over the content of all videos and the way they are cut.

        Of a damaged one, once the clips were gone through, its name alone.
        """
        whole = hashlib.sha256(self.cut.model_dump_json().encode())
        for video in self.videos:
            digest = "damaged" if video.name in self.damaged else video.digest()
            whole.update(f"{video.name} {digest}\n".encode())
        return whole.hexdigest()

    def walk(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        place: Place = ALONE,
    ) -> Iterator[Item]:
        """See `Source.walk`. A video is decoded only if one of its clips is wanted."""
        self.damaged, self.padded = {}, []
        drawn = self._drawn(cache, place) if self.cut.count is not None else None
        # While the caller computes, the next videos are decoded.
        ahead = deque[_Taken]()
        most = AHEAD if self.cut.window == "first" else 1  # else a video is decoded in full
        reader = ThreadPoolExecutor(min(most, READERS), "decode")
        try:
            for taken in self._taken(is_wanted, cache, place, drawn, reader):
                ahead.append(taken)
                if len(ahead) > most:
                    yield from self._items(ahead.popleft(), cache)
            while ahead:
                yield from self._items(ahead.popleft(), cache)
        finally:  # also when the caller stops
            reader.shutdown(cancel_futures=True)

    def _taken(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        place: Place,
        drawn: dict[int, list[int]] | None,
        reader: ThreadPoolExecutor,
    ) -> Iterator[_Taken]:
        """This process's videos; those of which a clip is wanted are being read."""
        for number in place.share(len(self.videos)):
            video = self.videos[number]
            if drawn is not None and number not in drawn:
                continue
            digest = self._digest(video, cache)
            if digest is None:
                continue
            starts = self._known(video, digest, cache) if drawn is None else drawn[number]
            if starts is not None and not any(is_wanted(self._key(digest, s)) for s in starts):
                yield _Taken(number, digest, starts, None)
            else:
                frames = reader.submit(video.read, self._wanted, self.cut.size)
                yield _Taken(number, digest, starts, frames)

    def _items(self, taken: _Taken, cache: FeatureCache | None) -> Iterator[Item]:
        """Clips of a video; none if it is damaged."""
        number, digest, starts, reading = taken
        video, frames = self.videos[number], None
        if reading is not None:
            frames = self._read(video, digest, cache, reading.result)
            if frames is None:
                return
        if starts is None:
            assert frames is not None, "a video of unknown length is read"
            starts = self._starts(len(frames), video.name)
        for order, start in enumerate(starts):
            name = f"{PurePosixPath(video.name).with_suffix('')}#{start}"
            clip = None
            if frames is not None:
                window = frames[start : start + self.cut.num_frames]
                clip = self.cut.finish(to_clip(pad_last(window, self.cut.num_frames)))
            yield Item(number * CLIPS + order, name, self._key(digest, start), clip)

    def share(self) -> None:
        """Tell all processes which videos were damaged or padded."""
        for damaged, padded in gather([self.damaged, self.padded]):
            self.damaged |= damaged
            self.padded += [name for name in padded if name not in self.padded]
        names = [video.name for video in self.videos]
        self.damaged = {name: self.damaged[name] for name in names if name in self.damaged}
        self.padded = [name for name in names if name in self.padded]

    def _key(self, digest: str, start: int) -> str:
        cut = self.cut
        shrunk = f" {cut.shrink_by} {cut.shrink}" if cut.shrink else ""
        return f"{digest} {READING} {start}+{cut.num_frames} {cut.size}{shrunk}"

    @property
    def _wanted(self) -> int | None:
        """Frames to read; None: all, since a video that breaks later gives nothing."""
        return self.cut.num_frames if self.cut.window == "first" else None

    def _read(
        self, video: Video, digest: str, cache: FeatureCache | None, read: Callable[[], Tensor]
    ) -> Tensor | None:
        """Frames (F', size, size, 3), noted; None of a damaged video."""
        try:
            frames = read()
        except (VideoError, OSError) as error:
            self._skip(video, error)
            return None
        if cache is not None:
            cache.put_note(self._length_note(digest), len(frames))
        self._tell(video, len(frames))
        return frames

    def _digest(self, video: Video, cache: FeatureCache | None) -> str | None:
        """Return a video's identity in the cache (without one its name); None if it is damaged."""
        if cache is None:
            return video.name
        try:
            return video.digest()
        except OSError as error:
            self._skip(video, error)
            return None

    def _skip(self, video: Video, error: VideoError | OSError) -> None:
        if video.name not in self.damaged:
            logger.warning("skipped a damaged video: %s", error)
        self.damaged[video.name] = str(error)

    def _tell(self, video: Video, length: int) -> None:
        if length < self.cut.num_frames and video.name not in self.padded:
            self.padded.append(video.name)

    def _length_note(self, digest: str) -> str:
        part = f" first {self.cut.num_frames}" if self.cut.window == "first" else ""
        return f"frames of {digest} {READING}{part}"

    def _known(self, video: Video, digest: str, cache: FeatureCache | None) -> list[int] | None:
        """Windows of a video whose length a cache knows."""
        length = None if cache is None else cache.note(self._length_note(digest))
        if length is None:
            return None
        self._tell(video, length)
        return self._starts(length, video.name)

    def _starts(self, length: int, name: str) -> list[int]:
        """First frames of the windows of a video."""
        if self.cut.window == "all":
            return window_starts(length, self.cut.num_frames)
        if self.cut.window == "first":
            return [0]
        # Drawn from the name: adding a file to the folder changes no other's window.
        last = max(length - self.cut.num_frames, 0)
        return [random.Random(f"{self.cut.seed} {name}").randint(0, last)]

    def _drawn(self, cache: FeatureCache | None, place: Place) -> dict[int, list[int]]:
        """Which windows of which videos are drawn; every length has to be known first."""
        assert self.cut.count is not None
        found: dict[int, list[int]] = {}
        for number in place.share(len(self.videos)):
            video = self.videos[number]
            digest = self._digest(video, cache)
            if digest is None:
                continue
            starts = self._known(video, digest, cache)
            if starts is None:
                read = partial(video.read, self._wanted, self.cut.size)
                frames = self._read(video, digest, cache, read)
                starts = [] if frames is None else self._starts(len(frames), video.name)
            found[number] = starts
        every = sorted(
            (number, starts) for part in _shared(found, place) for number, starts in part
        )
        windows = [(number, start) for number, starts in every for start in starts]
        if len(windows) < self.cut.count:
            raise EvatokError(
                f"{self.path} has {len(windows)} clips, not {self.cut.count}: give --count "
                f"{len(windows)} (a distance of another count is another distance)"
            )
        self.padded = []  # only of those that are drawn
        out: dict[int, list[int]] = {}
        for chosen in random.Random(self.cut.seed).sample(range(len(windows)), self.cut.count):
            number, start = windows[chosen]
            out.setdefault(number, []).append(start)
        return out


def _shared(found: dict[int, list[int]], place: Place) -> list[list[tuple[int, list[int]]]]:
    """Windows by video, of every process."""
    mine = list(found.items())
    return [mine] if place.world == 1 else gather(mine)
