"""Stores of frames: decoded ahead and memory-mapped, or the files themselves.

Decoded ahead, a clip costs one copy of its bytes, and no training waits for a decoder; it takes
H · W · 3 bytes a frame. Sets for which there is no such room (Kinetics) are prepared for random
access (`evatok data`) and read when a clip is drawn.

Shape letters: F frames, S pixels of a side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.files import atomic_folder
from evatok.core.processes.locks import held
from video.clips import Resizing, Size, pad_last, sides
from video.decoding.container import VideoError, damaged_allowed
from video.lists import VideoItem
from video.reading import READING, read_frames
from video.seek import count_frames, read_window

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

INDEX = "index.json"
FRAMES = "frames.u8"
VERSION = 1  # of the cache's format

Progress = Callable[[int, int], None]


class Index(BaseModel):
    """index.json of a cache."""

    model_config = ConfigDict(strict=True)

    version: Literal[1]
    size: PositiveInt | tuple[PositiveInt, PositiveInt]
    lengths: list[Annotated[int, Field(ge=0, lt=2**40)]]
    labels: list[Annotated[int, Field(ge=-1, lt=2**31)]]
    ids: list[str]
    class_names: list[str]
    damaged: list[str]

    @model_validator(mode="after")
    def _one_entry_a_video(self) -> Self:
        if len({len(self.lengths), len(self.labels), len(self.ids)}) > 1:
            raise EvatokError("lengths, labels and ids are of different numbers of videos")
        return self


class Store(ABC):
    """The readable videos of a list, and how long they are.

    Attributes:
        lengths: (N,) int64 frames of each.
        labels: (N,) int64 classes, −1 without.
        ids: of each.
        class_names: what labels count.
        damaged: ids of those that are left out.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            VideoError: no finished store there, or a damaged one.
        """
        self.folder = Path(folder)
        try:
            self.index = Index.model_validate_json((self.folder / INDEX).read_bytes())
        except OSError as error:
            raise VideoError(f"{folder}: no finished clip cache ({error})") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise VideoError(
                f"{self.folder / INDEX} is damaged ({'.'.join(map(str, first['loc']))}: "
                f"{first['msg']}): remove {folder}, and it is made again"
            ) from None
        self.size = self.index.size
        self.lengths = np.array(self.index.lengths, dtype=np.int64)
        self.labels = np.array(self.index.labels, dtype=np.int64)
        self.ids = self.index.ids
        self.class_names, self.damaged = self.index.class_names, self.index.damaged

    def __len__(self) -> int:
        return len(self.lengths)

    def drawn(self, seed: int, source: int, count: int) -> int:
        """The video that a run of this seed draws after `count` others of the source `source`."""
        turn, place = divmod(count, len(self))
        return int(permutation(len(self), (seed, 1, source, turn))[place])

    def label(self, video: int) -> int:
        """Class of a video, −1 without."""
        return int(self.labels[video])

    def name(self, video: int) -> str:
        """Identity of a video."""
        return self.ids[video]

    def length(self, video: int) -> int:
        """Frames of a video."""
        return int(self.lengths[video])

    @abstractmethod
    def clip(self, video: int, start: int, num_frames: int) -> Tensor:
        """(num_frames, H, W, 3) uint8 from frame `start`; the last is repeated where it ends."""


@lru_cache(maxsize=32)
def permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
    """The numbers below `length` in an order that a key decides."""
    return np.random.default_rng(key).permutation(length)


class ClipCache(Store):
    """Decoded frames of a list of videos, memory-mapped: a clip costs one copy of its bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.starts = np.cumsum(self.lengths) - self.lengths
        shape = (int(self.lengths.sum()), *sides(self.size), 3)
        frames = self.folder / FRAMES
        if not frames.is_file() or frames.stat().st_size != math.prod(shape):
            raise VideoError(f"{folder}: {FRAMES} has the wrong size; remove this folder")
        self.frames = np.memmap(self.folder / FRAMES, np.uint8, "r", shape=shape)

    def clip(self, video: int, start: int, num_frames: int) -> Tensor:
        """See `Store`."""
        first = int(self.starts[video]) + start
        last = min(first + num_frames, int(self.starts[video] + self.lengths[video]))
        return pad_last(torch.from_numpy(self.frames[first:last].copy()), num_frames)

    @staticmethod
    def build(
        items: Sequence[VideoItem],
        size: Size,
        folder: Path,
        *,
        max_damaged: float = 0.05,
        max_frames: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> ClipCache:
        """Decode all videos once; a finished cache of the same files and settings is reused.

        Args:
            items: the videos. Damaged ones are left out, named in a warning and counted.
            size: pixels; a picture is resized to cover it, then cropped.
            folder: parent of the cache, whose own name is a hash of files and settings.
            max_damaged: share of damaged files above which to stop.
            max_frames: of each video, from its start.
            workers: decoding threads.
            progress: called with videos done and their number.

        Raises:
            VideoError: too many damaged files, or none left.
        """
        target = Path(folder) / _fingerprint(items, size, max_frames)

        def decode(item: VideoItem) -> Tensor:
            return read_frames(item.path, 0, max_frames, size)

        def fill(partial: Path) -> dict[str, Any]:
            with (partial / FRAMES).open("wb") as file:

                def keep(frames: Tensor) -> int:
                    file.write(frames.numpy().tobytes())
                    return len(frames)

                index = _each(items, decode, keep, max_damaged, workers, progress)
                file.flush()
                os.fsync(file.fileno())
            return index | {"size": size}

        _build(target, fill)
        return ClipCache(target)


class VideoFiles(Store):
    """The files themselves: a clip is decoded when it is drawn, and decoded anew the next time.

    Attributes:
        resizing: of clips, as in `video.clips.fitted`.
    """

    def __init__(
        self, folder: Path, items: Sequence[VideoItem], resizing: Resizing = "bytes"
    ) -> None:
        super().__init__(folder)
        self.resizing: Resizing = resizing
        paths = {item.id: item.path for item in items}
        unknown = next((name for name in self.ids if name not in paths), None)
        if unknown is not None:
            raise VideoError(
                f"{self.folder / INDEX} names {unknown}, which is not in the list: remove {folder}"
            )
        self.paths = [paths[name] for name in self.ids]

    def clip(self, video: int, start: int, num_frames: int) -> Tensor:
        """See `Store`; floats in [0, 1] where `resizing` is "float".

        Raises:
            VideoError: the file is damaged there, which its headers did not tell.
        """
        count = min(num_frames, int(self.lengths[video]) - start)
        frames = read_window(self.paths[video], start, count, self.size, self.resizing)
        return pad_last(frames, num_frames)

    @staticmethod
    def build(
        items: Sequence[VideoItem],
        size: Size,
        folder: Path,
        *,
        max_damaged: float = 0.05,
        max_frames: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
        resizing: Resizing = "bytes",
    ) -> VideoFiles:
        """Count the frames of all videos once; see `ClipCache.build`."""
        target = Path(folder) / f"{_fingerprint(items, size, max_frames)}-files"

        def count(item: VideoItem) -> int:
            frames = count_frames(item.path)
            return frames if max_frames is None else min(frames, max_frames)

        def fill(_: Path) -> dict[str, Any]:
            return _each(items, count, int, max_damaged, workers, progress) | {"size": size}

        _build(target, fill)
        return VideoFiles(target, items, resizing)


def _fingerprint(items: Sequence[VideoItem], size: Size, max_frames: int | None) -> str:
    classes = items[0].classes if items else ()
    digest = hashlib.sha256(f"{VERSION} {READING} {size} {max_frames} {classes}".encode())
    for item in items:
        stat = item.path.stat() if item.path.is_file() else None
        mark = f"{item.id} {item.label} {stat and (stat.st_size, stat.st_mtime_ns)}\n"
        digest.update(mark.encode())
    return digest.hexdigest()[:16]


def _build(target: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Make a folder with an index, whole or not at all and once; a finished one stays."""
    if (target / INDEX).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with held(target.with_name(f".{target.name}.lock")):
        if (target / INDEX).is_file():  # another process was faster
            return
        with atomic_folder(target) as partial:
            (partial / INDEX).write_text(json.dumps(fill(partial)))


def _each(
    items: Sequence[VideoItem],
    read: Callable[[VideoItem], Any],
    keep: Callable[[Any], int],
    max_damaged: float,
    workers: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Read all files: the index of those that could be.

    Args:
        items: the files.
        read: what is done with one in a thread; raises VideoError for a damaged one.
        keep: what is done with its result, in order; tells how many frames it has.
        max_damaged: share of damaged files above which to stop.
        workers: threads.
        progress: called with files done and their number.
    """
    kept: list[VideoItem] = []
    lengths: list[int] = []
    damaged: list[str] = []

    def tried(item: VideoItem) -> Any:
        try:
            return read(item)
        except VideoError as error:
            return error

    results = parallel(tried, items, workers)
    for done, (item, result) in enumerate(zip(items, results, strict=True), 1):
        if isinstance(result, VideoError):
            damaged.append(item.id)
            log.warning("skipped %s", result)
            if len(damaged) > damaged_allowed(max_damaged, len(items)):
                raise VideoError(
                    f"{len(damaged)} of {len(items)} videos are damaged or missing, more than "
                    f"max_damaged {max_damaged:g} allows: {', '.join(damaged[:3])} …"
                )
        else:
            lengths.append(keep(result))
            kept.append(item)
        if progress is not None:
            progress(done, len(items))
    if not kept:
        raise VideoError("no readable video in the list")
    if damaged:
        log.warning("%d of %d videos are damaged and left out", len(damaged), len(items))
    return {
        "version": VERSION,
        "lengths": lengths,
        "labels": [item.label for item in kept],
        "ids": [item.id for item in kept],
        "class_names": list(items[0].classes),
        "damaged": damaged,
    }


def parallel(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results in the order of the items, by threads: decoding and resizing release the GIL."""
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(items), 8 * workers):  # bounded: results wait in memory
            yield from pool.map(work, items[first : first + 8 * workers])
