"""Clips of a set of videos, drawn by a rule, with a key for each that caches go by.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field, model_serializer
from pydantic_core.core_schema import SerializerFunctionWrapHandler
from torch import Tensor

from evaluation.encoders.base import legacy_resize, resize_frames
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.readers import Video, find_videos
from evatok.core.config import Config, PictureSize
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import RankInfo, gather
from video.clips import Resizing, WindowRule, drawn_starts, pad_last, to_clip
from video.decoding.container import VideoError
from video.reading import READING

logger = logging.getLogger(__name__)

Order = Literal["path", "name"]
Short = Literal["repeat", "skip"]
ALONE = RankInfo()
AHEAD = 16  # videos of which a first window is decoded before it is asked for
READERS = 4  # threads that decode them
CLIPS = 1 << 32  # numbers that a video has for its clips


class Cut(Config):
    """Rule by which clips are cut from videos.

    Attributes:
        num_frames: F; for shorter videos see `short`.
        size: resized to cover it (antialiased), then the centre cut out; one side, or [height,
            width].
        window: which frames of a video: see `WindowRule`.
        seed: of random windows and of the draw.
        count: clips drawn from all windows with `random.Random(seed).sample`, as published
            protocols do; None: all of them.
        shrink: then resized to this side, as K600's protocols do first.
        shrink_by: "antialias", or "legacy" (TensorFlow 1: no half-pixel centres, aliased).
        resize: how `size` is reached: "bytes" rounds pixels to bytes, "float" does not, and cuts
            the longer side off to whole pixels as torchvision does (LARP's code).
        order: of the videos, from whose windows `count` are drawn: by their path in the folder, or
            by file "name", as in lists that know no folder of a class (LARP's of Kinetics).
        short: what becomes of a video shorter than a clip: its last frame is repeated, or it has no
            window, as in LARP's draws and in StyleGAN-V's sets.
    """

    num_frames: int = Field(default=16, ge=1)
    size: PictureSize = 128
    window: WindowRule = "first"
    seed: int = 42
    count: int | None = None
    shrink: int | None = None
    shrink_by: Literal["antialias", "legacy"] = "antialias"
    resize: Resizing = "bytes"
    order: Order = "path"
    short: Short = "repeat"

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is usual: records from before it could be set compare."""
        unset = {"resize": "bytes", "order": "path", "short": "repeat"}
        return {k: v for k, v in handler(self).items() if unset.get(k) != v}

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return names of videos in `order`."""
        if self.order == "path":
            return sorted(names)
        return sorted(names, key=lambda name: (PurePosixPath(name).name, name))

    def finish(self, clip: Tensor) -> Tensor:
        """Resize a clip (3, F, H, W) in [−1, 1] as `shrink` says."""
        if self.shrink is None:
            return clip
        if self.shrink_by == "legacy":
            return legacy_resize(clip[None], self.shrink)[0]
        return resize_frames(clip[None], self.shrink, antialias=True)[0]


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
        process: RankInfo = ALONE,
    ) -> Iterator[Item]:
        """This process's clips; the items of all processes together are those of one alone."""
        ...

    def exchange(self) -> None:
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
        videos: all of them, in the order of the cut.
        damaged: why a video could not be read, by name; filled while the clips are gone through.
            Such a video gives no clip.
        padded: videos shorter than a clip, whose last frame was repeated.
        short: those that were left out instead.

    A clip's name is that of its video without the suffix, and its first frame.
    """

    def __init__(self, path: str | Path, cut: Cut | None = None) -> None:
        """Find the videos.

        Raises:
            FileNotFoundError: there is no such path.
            EvatokError: it has no videos, or no such window.
        """
        self.path, self.cut = Path(path), cut or Cut()
        found = {video.name: video for video in find_videos(path)}
        self.videos = [found[name] for name in self.cut.ordered(found)]
        self.damaged: dict[str, str] = {}
        self.padded: list[str] = []
        self.short: list[str] = []

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
        process: RankInfo = ALONE,
    ) -> Iterator[Item]:
        """See `Source.walk`. A video is decoded only if one of its clips is wanted."""
        self.damaged, self.padded, self.short = {}, [], []
        drawn = self._drawn(cache, process) if self.cut.count is not None else None
        # While the caller computes, the next videos are decoded.
        ahead = deque[_Taken]()
        most = AHEAD if self.cut.window == "first" else 1  # else a video is decoded in full
        reader = ThreadPoolExecutor(min(most, READERS), "decode")
        try:
            for taken in self._taken(is_wanted, cache, process, drawn, reader):
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
        process: RankInfo,
        drawn: dict[int, list[int]] | None,
        reader: ThreadPoolExecutor,
    ) -> Iterator[_Taken]:
        """This process's videos; those of which a clip is wanted are being read."""
        for number in process.shard(len(self.videos)):
            video = self.videos[number]
            if drawn is not None and number not in drawn:
                continue
            digest = self._digest(video, cache)
            if digest is None:
                continue
            known = self._known(video, digest, cache)
            starts = known if drawn is None else drawn[number]
            if starts is not None and not any(is_wanted(self._key(digest, s)) for s in starts):
                yield _Taken(number, digest, starts, None)
            else:
                frames = reader.submit(video.read, self._wanted, self.cut.size, self.cut.resize)
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

    def exchange(self) -> None:
        """Tell all processes which videos were damaged, padded or left out."""
        padded, short = set(self.padded), set(self.short)
        for found in gather([self.damaged, self.padded, self.short]):
            self.damaged |= found[0]
            padded.update(found[1])
            short.update(found[2])
        names = [video.name for video in self.videos]
        self.damaged = {name: self.damaged[name] for name in names if name in self.damaged}
        self.padded = [name for name in names if name in padded]
        self.short = [name for name in names if name in short]

    def _key(self, digest: str, start: int) -> str:
        cut = self.cut
        shrunk = f" {cut.shrink_by} {cut.shrink}" if cut.shrink else ""
        exact = " float" if cut.resize == "float" else ""
        return f"{digest} {READING} {start}+{cut.num_frames} {cut.size}{exact}{shrunk}"

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

    def _counted(self, video: Video, digest: str, cache: FeatureCache | None) -> int | None:
        """Frames of a video, noted, decoded only where they are not told; None of a damaged one."""
        try:
            length = video.count(self._wanted)
        except (VideoError, OSError) as error:
            self._skip(video, error)
            return None
        if self._wanted is not None:
            length = min(length, self._wanted)
        if cache is not None:
            cache.put_note(self._length_note(digest), length)
        self._tell(video, length)
        return length

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
        told = self.short if self.cut.short == "skip" else self.padded
        if length < self.cut.num_frames and video.name not in told:
            told.append(video.name)

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
        if length < self.cut.num_frames and self.cut.short == "skip":
            return []
        # Drawn from the name: adding a file to the folder changes no other's windows.
        draw = random.Random(f"{self.cut.seed} {name}")
        return drawn_starts(length, self.cut.num_frames, self.cut.window, draw)

    def _drawn(self, cache: FeatureCache | None, process: RankInfo) -> dict[int, list[int]]:
        """Drawn windows by video; every length has to be known first."""
        assert self.cut.count is not None
        found: dict[int, list[int]] = {}
        for number in process.shard(len(self.videos)):
            video = self.videos[number]
            digest = self._digest(video, cache)
            if digest is None:
                continue
            starts = self._known(video, digest, cache)
            if starts is None:
                length = self._counted(video, digest, cache)
                starts = [] if length is None else self._starts(length, video.name)
            found[number] = starts
        every = sorted(
            (number, starts) for part in _shared(found, process) for number, starts in part
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


def _shared(found: dict[int, list[int]], process: RankInfo) -> list[list[tuple[int, list[int]]]]:
    """Windows by video, of every process."""
    mine = list(found.items())
    return [mine] if process.world == 1 else gather(mine)
