"""Clips for training and evaluation: a memory-mapped cache of decoded frames, and a sampler that
keeps no state.

What a step sees is a function of (seed, step): a resumed run needs no sampler state, and any
number of processes together see what one would.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from video.clips import pad_last, window_starts
from video.io import VideoError, read_frames
from video.lists import Split, VideoItem, read_folder, read_kinetics_csv, read_ucf101

log = logging.getLogger(__name__)

INDEX = "index.json"
FRAMES = "frames.u8"
VERSION = 1  # of the cache's format


class Settings(BaseModel):
    """Base of this package's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Settings):
    """One set of videos."""

    kind: Literal["ucf101", "kinetics", "folder"]
    root: Path
    fold: int = 1  # ucf101: which of the three official splits
    train_csv: Path | None = None  # kinetics: the lists
    test_csv: Path | None = None
    weight: float = Field(default=1.0, gt=0)  # share of this source among the training clips
    optional: bool = False  # true: a root that is not there is left out, with one logged line

    def items(self, split: Split) -> list[VideoItem]:
        """The videos of a split; a plain folder has the same for both."""
        if self.kind == "ucf101":
            return read_ucf101(self.root, split, self.fold)
        if self.kind == "folder":
            return read_folder(self.root)
        path = self.train_csv if split == "train" else self.test_csv
        if path is None:
            raise VideoError(f"{self.root}: a kinetics source needs {split}_csv")
        return read_kinetics_csv(path, self.root)


class DataConfig(Settings):
    """Clips of what, and how they are drawn."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    num_frames: int = Field(default=16, ge=1)
    size: int = Field(default=64, ge=1)  # pixels, square
    cache_dir: Path = Path("runs/cache")
    max_damaged: float = Field(default=0.05, ge=0, le=1)  # share of files; more stops the run
    max_frames: int | None = Field(default=None, ge=1)  # kept of each video, from its start
    workers: int = Field(default=2, ge=1)  # threads that decode
    window: Literal["random", "first"] = "random"
    flip: bool = False  # half of the training clips mirrored
    color_permute: bool = False  # colour channels of training clips in random order
    zoom: float = Field(default=1.0, ge=1)  # training clips cropped by up to this and enlarged


def _decode(job: tuple[Path, int, int | None]) -> np.ndarray | str:
    """Frames (F, S, S, 3) of one file, or what is wrong with it."""
    path, size, max_frames = job
    try:
        return read_frames(path, 0, max_frames, size).numpy()
    except VideoError as error:
        return str(error)


class ClipCache:
    """Decoded frames of a list of videos, memory-mapped: a clip costs one copy of its bytes."""

    def __init__(self, folder: Path) -> None:
        """Open a finished cache.

        Raises:
            VideoError: no finished cache of this format there.
        """
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise VideoError(f"{folder}: no finished clip cache ({error})") from error
        self.size = int(index["size"])
        self.lengths = np.array(index["lengths"], dtype=np.int64)
        self.labels = np.array(index["labels"], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids: list[str] = index["ids"]
        self.class_names: list[str] = index["class_names"]
        self.damaged: list[str] = index["damaged"]
        shape = (int(self.lengths.sum()), self.size, self.size, 3)
        if (self.folder / FRAMES).stat().st_size != np.prod(shape):
            raise VideoError(f"{folder}: {FRAMES} has the wrong size; remove this folder")
        self.frames = np.memmap(self.folder / FRAMES, np.uint8, "r", shape=shape)

    def __len__(self) -> int:
        return len(self.lengths)

    def clip(self, video: int, start: int, num_frames: int) -> Tensor:
        """(num_frames, S, S, 3) uint8 from frame `start`; the last is repeated where it ends."""
        first = int(self.starts[video]) + start
        last = min(first + num_frames, int(self.starts[video] + self.lengths[video]))
        return pad_last(torch.from_numpy(self.frames[first:last].copy()), num_frames)

    @staticmethod
    def build(
        items: Sequence[VideoItem],
        size: int,
        folder: Path,
        *,
        max_damaged: float = 0.05,
        max_frames: int | None = None,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> ClipCache:
        """Decode all videos once; a finished cache of the same files and settings is reused.

        Args:
            items: the videos. Damaged ones are left out, named in a warning and counted.
            size: short side and crop in pixels.
            folder: parent of the cache, whose own name is a hash of files and settings.
            max_damaged: share of damaged files above which to stop.
            max_frames: of each video, from its start.
            workers: decoding threads.
            progress: called with videos done and their number.

        Raises:
            VideoError: too many damaged files, or none left.
        """
        target = Path(folder) / _fingerprint(items, size, max_frames)
        if (target / INDEX).is_file():
            return ClipCache(target)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            index = _fill(
                partial,
                items,
                size,
                max_damaged,
                max_frames,
                workers,
                progress or (lambda *_: None),
            )
            (partial / INDEX).write_text(json.dumps(index))
            if not target.exists():  # another process may have been faster
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return ClipCache(target)


def _fingerprint(items: Sequence[VideoItem], size: int, max_frames: int | None) -> str:
    digest = hashlib.sha256(f"{VERSION} {size} {max_frames}".encode())
    for item in items:
        stat = item.path.stat() if item.path.is_file() else None
        mark = f"{item.id} {item.label} {stat and (stat.st_size, stat.st_mtime_ns)}\n"
        digest.update(mark.encode())
    return digest.hexdigest()[:16]


def _decoded(jobs: list[tuple[Path, int, int | None]], workers: int) -> Iterator[np.ndarray | str]:
    if workers == 1:
        yield from map(_decode, jobs)
        return
    with ThreadPoolExecutor(workers) as pool:  # decoding and resizing release the GIL
        for first in range(0, len(jobs), 8 * workers):  # bounded: results wait in memory
            yield from pool.map(_decode, jobs[first : first + 8 * workers])


def _fill(
    folder: Path,
    items: Sequence[VideoItem],
    size: int,
    max_damaged: float,
    max_frames: int | None,
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[str, object]:
    kept: list[VideoItem] = []
    lengths: list[int] = []
    damaged: list[str] = []
    results = _decoded([(item.path, size, max_frames) for item in items], workers)
    with (folder / FRAMES).open("wb") as file:
        for done, (item, result) in enumerate(zip(items, results, strict=True), 1):
            if isinstance(result, str):
                damaged.append(item.id)
                log.warning("skipped %s", result)
                if len(damaged) > max_damaged * len(items):
                    raise VideoError(
                        f"{len(damaged)} of {len(items)} videos are damaged or missing, more than "
                        f"max_damaged {max_damaged:g} allows: {', '.join(damaged[:3])} …"
                    )
            else:
                file.write(result.tobytes())
                kept.append(item)
                lengths.append(len(result))
            progress(done, len(items))
        file.flush()
        os.fsync(file.fileno())
    if not kept:
        raise VideoError("no readable video in the list")
    if damaged:
        log.warning("%d of %d videos are damaged and left out", len(damaged), len(items))
    names = {item.label: item.class_name for item in items if item.label >= 0}
    return {
        "version": VERSION,
        "size": size,
        "lengths": lengths,
        "labels": [item.label for item in kept],
        "ids": [item.id for item in kept],
        "class_names": [names[label] for label in sorted(names)],
        "damaged": damaged,
    }


class Window(NamedTuple):
    """A clip's place: which source, which video of it, which first frame."""

    source: int
    video: int
    start: int


class ClipSampler:
    """Draws clips of one split; every batch is a pure function of its arguments."""

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Open the caches of all sources, building what is missing.

        Raises:
            VideoError: a source is absent and not optional, too much is damaged, nothing is left.
        """
        self.config = config
        self.split = split
        self.sources: list[SourceConfig] = []
        self.caches: list[ClipCache] = []
        for source in config.sources:
            if source.optional and not source.root.is_dir():
                log.warning("%s is not here: this source is left out", source.root)
                continue
            cache = ClipCache.build(
                source.items(split),
                config.size,
                config.cache_dir,
                max_damaged=config.max_damaged,
                max_frames=config.max_frames,
                workers=config.workers,
                progress=progress,
            )
            self.sources.append(source)
            self.caches.append(cache)
        if not self.caches:
            raise VideoError("none of the sources is here")
        self.class_names = [name for cache in self.caches for name in cache.class_names]
        counts = [len(cache.class_names) for cache in self.caches]
        self._offsets = [sum(counts[:i]) for i in range(len(counts))]
        # An epoch visits every video of the source that is largest for its weight once; the
        # others are repeated or cut so that shares follow the weights.
        weights = [source.weight for source in self.sources]
        largest = max(len(c) / w for c, w in zip(self.caches, weights, strict=True))
        self.per_epoch = [max(1, round(w * largest)) for w in weights]

    @property
    def num_videos(self) -> int:
        """Readable videos of all sources."""
        return sum(len(cache) for cache in self.caches)

    def label(self, window: Window) -> int:
        """Class of a window among `class_names`, −1 without classes."""
        label = int(self.caches[window.source].labels[window.video])
        return label if label < 0 else label + self._offsets[window.source]

    def name(self, window: Window) -> str:
        """Identity of a window: video id and first frame."""
        return f"{self.caches[window.source].ids[window.video]}#{window.start}"

    def _place(self, seed: int, sample: int) -> tuple[int, int]:
        """Source and video of the n-th sample of a run."""
        length = sum(self.per_epoch)
        epoch, within = divmod(sample, length)
        source, before = _slot(seed, epoch, tuple(self.per_epoch), within)
        turn, place = divmod(epoch * self.per_epoch[source] + before, len(self.caches[source]))
        return source, int(_permutation(len(self.caches[source]), (seed, 1, source, turn))[place])

    def batch(
        self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> tuple[Tensor, Tensor, list[Window]]:
        """Clips of one optimiser step.

        Args:
            step: from 0.
            batch_size: rows over all processes; this one gets rows rank, rank + world, …
            seed: of the run.
            rank: this process.
            world: number of processes.

        Returns:
            clips (B, 3, F, H, W) float32 in [−1, 1], labels (B,) int64, and their windows.
        """
        clips, windows = [], []
        for row in range(rank, batch_size, world):
            sample = step * batch_size + row
            source, video = self._place(seed, sample)
            rng = np.random.default_rng((seed, 2, sample))
            room = int(self.caches[source].lengths[video]) - self.config.num_frames
            start = int(rng.integers(room + 1)) if room > 0 else 0
            window = Window(source, video, 0 if self.config.window == "first" else start)
            windows.append(window)
            clips.append(self._augment(self._frames(window), rng))
        labels = torch.tensor([self.label(window) for window in windows])
        return _stack(clips), labels, windows

    def _frames(self, window: Window) -> Tensor:
        cache = self.caches[window.source]
        return cache.clip(window.video, window.start, self.config.num_frames)

    def _augment(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Change a whole clip (F, H, W, 3) uint8 alike in all its frames."""
        config = self.config
        flip, order, zoom = rng.random() < 0.5, rng.permutation(3), rng.random(3)
        if config.zoom > 1:
            size = frames.shape[1]
            side = round(size / (1 + (config.zoom - 1) * zoom[0]))
            top, left = (int(z * (size - side + 1)) for z in zoom[1:])
            crop = frames[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
            grown = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
            frames = grown.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        if config.flip and flip:
            frames = frames.flip(2)
        if config.color_permute:
            frames = frames[..., torch.from_numpy(order)]
        return frames

    def eval_clips(
        self,
        limit: int | None = None,
        window: Literal["all", "first"] = "first",
        source: int | None = None,
        seed: int = 42,
    ) -> list[Window]:
        """The fixed clips of an evaluation.

        Args:
            limit: how many at most, drawn with `random.Random(seed).sample` as the published
                protocols do.
            window: "first" window of every video, or "all" non-overlapping ones.
            source: of one source only.
            seed: of the draw.
        """
        windows = [
            Window(number, video, start)
            for number, cache in enumerate(self.caches)
            if source in (None, number)
            for video in range(len(cache))
            for start in (
                window_starts(int(cache.lengths[video]), self.config.num_frames)
                if window == "all"
                else [0]
            )
        ]
        if limit is None or limit >= len(windows):
            return windows
        return [windows[i] for i in random.Random(seed).sample(range(len(windows)), limit)]

    def load(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) float32 in [−1, 1] and labels (B,) of windows, unaugmented."""
        labels = torch.tensor([self.label(window) for window in windows])
        return _stack([self._frames(window) for window in windows]), labels


def _stack(clips: list[Tensor]) -> Tensor:
    frames = torch.stack(clips).permute(0, 4, 1, 2, 3)  # (B, 3, F, H, W) uint8
    return frames.contiguous().float().div_(127.5).sub_(1)


@lru_cache(maxsize=32)
def _permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(length)


@lru_cache(maxsize=4)
def _slots(seed: int, epoch: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each place of an epoch its source, and how many of that source came before."""
    sources = np.repeat(np.arange(len(counts)), counts)
    sources = sources[_permutation(len(sources), (seed, 0, epoch))]
    before = np.zeros(len(sources), dtype=np.int64)
    for source in range(len(counts)):
        mask = sources == source
        before[mask] = np.arange(mask.sum())
    return sources, before


def _slot(seed: int, epoch: int, counts: tuple[int, ...], within: int) -> tuple[int, int]:
    sources, before = _slots(seed, epoch, counts)
    return int(sources[within]), int(before[within])
