"""Clips for training and evaluation: a sampler that keeps no state.

What a step sees is a function of (seed, step): a resumed run needs no sampler state, and any
number of processes together see what one would.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler
from torch import Tensor

from evatok.core.config import PictureSize
from evatok.core.errors import EvatokError
from video.arcade.live import LiveClips
from video.cache import ClipCache, Store, VideoFiles, parallel, permutation
from video.clips import Resizing, WindowRule, drawn_starts, to_clip
from video.decoding.container import VideoError
from video.lists import (
    Split,
    VideoItem,
    read_folder,
    read_kinetics_csv,
    read_pictures,
    read_ucf101,
    read_videos_csv,
)

log = logging.getLogger(__name__)


class VideoConfig(BaseModel):
    """Base of this package's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(VideoConfig):
    """One set of videos."""

    # procgen: no files, clips are played while a model trains; see `video.arcade.live`
    # images: the pictures below a folder, each a video of one frame; see `video.lists`
    kind: Literal["ucf101", "kinetics", "folder", "images", "procgen"]
    root: Path = Path()  # procgen: only the name under which the source is told
    games: tuple[str, ...] = ()  # procgen: names, none = all
    clips: int = Field(default=4096, ge=1)  # procgen: of an epoch, or held out, with their levels
    fold: int = 1  # ucf101: which of the three official splits
    train_csv: Path | None = None  # kinetics: the lists
    test_csv: Path | None = None
    videos: Path | None = None  # folder: list with the class and split of each video
    weight: float = Field(default=1.0, gt=0)  # share of this source among the training clips
    optional: bool = False  # true: a root that is not there is left out, with one logged line

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """A root is wanted, but of a source without files."""
        if isinstance(data, dict) and "root" not in data:
            if data.get("kind") != "procgen":
                raise EvatokError("a source needs a root, the folder of its videos")
            return {**data, "root": Path("procgen")}
        return data

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Name no list where there is none: records from before it could be set stay the same."""
        return {k: v for k, v in handler(self).items() if k != "videos" or v is not None}

    @model_validator(mode="after")
    def _lists_belong(self) -> SourceConfig:
        if self.videos is not None and self.kind != "folder":
            raise EvatokError(f"videos is the list of a folder; a {self.kind} source has others")
        return self

    def items(self, split: Split) -> list[VideoItem]:
        """The videos of a split; a folder without a list has the same, unlabelled, for both."""
        if self.kind == "procgen":
            raise VideoError(f"{self.root}: a procgen source has no files")
        if self.kind == "ucf101":
            return read_ucf101(self.root, split, self.fold)
        if self.kind == "images":
            return read_pictures(self.root, split)
        if self.videos is not None:
            return read_videos_csv(self.videos, self.root, split)
        if self.kind == "folder":
            if split == "test":
                log.warning("%s: no list of videos, so all of them are held-out ones", self.root)
            return read_folder(self.root)
        path = self.train_csv if split == "train" else self.test_csv
        if path is None:
            raise VideoError(f"{self.root}: a kinetics source needs {split}_csv")
        others = [p for p in (self.train_csv, self.test_csv) if p is not None and p != path]
        return read_kinetics_csv(path, self.root, others)


class DataConfig(VideoConfig):
    """Clips of what, and how they are drawn."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    num_frames: int = Field(default=16, ge=1, le=4096)
    size: PictureSize = 64  # pixels: the side of a square, or [height, width]
    # "decoded": all frames lie in cache_dir, memory-mapped; "files": only their counts, and a clip
    # is decoded when it is drawn, for sets too large for the first, prepared by `evatok data`.
    read: Literal["decoded", "files"] = "decoded"
    cache_dir: Path = Path("runs/cache")
    max_damaged: float = Field(default=0.05, ge=0, le=1)  # share of files; more stops the run
    max_frames: int | None = Field(default=None, ge=1)  # kept of each video, from its start
    workers: int = Field(default=2, ge=1)  # threads that decode; no change to a clip
    window: Literal["random", "first"] = "random"
    flip: bool = False  # half of the training clips mirrored
    color_permute: bool = False  # colour channels of training clips in random order
    zoom: float = Field(default=1.0, ge=1)  # training clips cropped by up to this and enlarged


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
        *,
        resizing: Resizing = "bytes",
    ) -> None:
        """Open the caches of all sources, building what is missing.

        Args:
            config: of the sources.
            split: of their lists.
            progress: called with videos done and their number.
            resizing: as in `video.clips.fitted`; with "float" clips are read from the files, which
                hold more than what was decoded ahead.

        Raises:
            VideoError: a source is absent and not optional, too much is damaged, nothing is left.
        """
        self.config = config
        self.split = split
        self.sources: list[SourceConfig] = []
        self.caches: list[Store] = []
        build, self._is_reading = ClipCache.build, config.read == "files" or resizing == "float"
        if self._is_reading:
            build = partial(VideoFiles.build, resizing=resizing)
        for source in config.sources:
            if source.kind == "procgen":
                live = LiveClips(source.games, split, config.num_frames, config.size, source.clips)
                self.sources.append(source)
                self.caches.append(live)
                continue
            if source.optional and not source.root.is_dir():
                log.warning("%s is not here: this source is left out", source.root)
                continue
            cache = build(
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
        label = self.caches[window.source].label(window.video)
        return label if label < 0 else label + self._offsets[window.source]

    def name(self, window: Window) -> str:
        """Identity of a window: video id and first frame."""
        return f"{self.caches[window.source].name(window.video)}#{window.start}"

    def _place(self, seed: int, sample: int) -> tuple[int, int]:
        """Source and video of the n-th sample of a run."""
        length = sum(self.per_epoch)
        epoch, within = divmod(sample, length)
        source, before = _slot(seed, epoch, tuple(self.per_epoch), within)
        count = epoch * self.per_epoch[source] + before
        return source, self.caches[source].drawn(seed, source, count)

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
        samples = range(step * batch_size + rank, (step + 1) * batch_size, world)
        windows = [self.window(sample, seed) for sample in samples]
        labels = torch.tensor([self.label(window) for window in windows])
        return self.clips(samples, seed), labels, windows

    def window(self, sample: int, seed: int) -> Window:
        """Place of the n-th sample of a run, row n % batch_size of step n // batch_size."""
        return self._draw(sample, seed)[0]

    def clips(self, samples: Sequence[int], seed: int) -> Tensor:
        """Samples of a run (B, 3, F, H, W) float32 in [−1, 1]; only these are read."""

        def clip(sample: int) -> Tensor:
            window, rng = self._draw(sample, seed)
            return self._augment(self._frames(window), rng)

        return _stack(list(parallel(clip, samples, self._threads)))

    @property
    def _threads(self) -> int:
        """Those that decode; what was decoded ahead is only copied."""
        return self.config.workers if self._is_reading else 1

    def _draw(self, sample: int, seed: int) -> tuple[Window, np.random.Generator]:
        """Place of a sample, and the generator of what is random in it from there on."""
        source, video = self._place(seed, sample)
        rng = np.random.default_rng((seed, 2, sample))
        room = self.caches[source].length(video) - self.config.num_frames
        start = int(rng.integers(room + 1)) if room > 0 else 0
        return Window(source, video, 0 if self.config.window == "first" else start), rng

    def _frames(self, window: Window) -> Tensor:
        cache = self.caches[window.source]
        return cache.clip(window.video, window.start, self.config.num_frames)

    def _augment(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Change a whole clip (F, H, W, 3) uint8 alike in all its frames."""
        config = self.config
        flip, order, zoom = rng.random() < 0.5, rng.permutation(3), rng.random(3)
        if config.zoom > 1:
            size = tuple(frames.shape[1:3])
            height, width = (round(side / (1 + (config.zoom - 1) * zoom[0])) for side in size)
            top, left = int(zoom[1] * (size[0] - height + 1)), int(zoom[2] * (size[1] - width + 1))
            crop = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
            grown = F.interpolate(crop, size, mode="bilinear", antialias=True)
            frames = grown.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        if config.flip and flip:
            frames = frames.flip(2)
        if config.color_permute:
            frames = frames[..., torch.from_numpy(order)]
        return frames

    def eval_clips(
        self,
        limit: int | None = None,
        window: WindowRule = "first",
        source: int | None = None,
        seed: int = 42,
        order: Literal["list", "path", "name"] = "list",
        short: Literal["repeat", "skip"] = "repeat",
    ) -> list[Window]:
        """The fixed clips of an evaluation.

        Args:
            limit: how many at most, drawn with `random.Random(seed).sample` as the published
                protocols do.
            window: which windows of every video; drawn by one `random.Random(seed)`, video after
                video.
            source: of one source only.
            seed: of the draw.
            order: of the videos: of their list; by path, as LARP's code sorts them; or by file
                name, which is the same where the published list knows no folder of a class.
            short: whether a video shorter than a clip has one, its last frame repeated, or none.
        """
        keys: dict[str, Callable[[str], Any]] = {
            "path": str, "name": lambda name: (PurePosixPath(name).name, name)
        }  # fmt: skip

        def ordered(cache: Store) -> Sequence[int]:
            videos = range(len(cache))
            key = keys.get(order)
            return videos if key is None else sorted(videos, key=lambda v: key(cache.name(v)))

        draw = random.Random(seed)

        def starts(cache: Store, video: int) -> Sequence[int]:
            if window == "first":
                return [0]  # without counting the frames
            return drawn_starts(cache.length(video), self.config.num_frames, window, draw)

        windows = [
            Window(number, video, start)
            for number, cache in enumerate(self.caches)
            if source in (None, number)
            for video in ordered(cache)
            if short == "repeat" or cache.length(video) >= self.config.num_frames
            for start in starts(cache, video)
        ]
        if limit is None or limit >= len(windows):
            return windows
        return [windows[i] for i in random.Random(seed).sample(range(len(windows)), limit)]

    def load(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) float32 in [−1, 1] and labels (B,) of windows, unaugmented."""
        labels = torch.tensor([self.label(window) for window in windows])
        return _stack(list(parallel(self._frames, windows, self._threads))), labels


def _stack(clips: list[Tensor]) -> Tensor:
    if clips[0].is_floating_point():
        return torch.stack([to_clip(clip) for clip in clips])
    frames = torch.stack(clips).permute(0, 4, 1, 2, 3)  # (B, 3, F, H, W) uint8
    return frames.contiguous().float().div_(127.5).sub_(1)


@lru_cache(maxsize=4)
def _slots(seed: int, epoch: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each place of an epoch its source, and how many of that source came before."""
    sources = np.repeat(np.arange(len(counts)), counts)
    sources = sources[permutation(len(sources), (seed, 0, epoch))]
    before = np.zeros(len(sources), dtype=np.int64)
    for source in range(len(counts)):
        mask = sources == source
        before[mask] = np.arange(mask.sum())
    return sources, before


def _slot(seed: int, epoch: int, counts: tuple[int, ...], within: int) -> tuple[int, int]:
    sources, before = _slots(seed, epoch, counts)
    return int(sources[within]), int(before[within])
