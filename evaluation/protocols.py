"""From two sets of clips, or two folders of videos, to scores that say how they were made.

A result is a flat dict that goes into JSON as it is: the distances under `fvd[<network>]`, and
beside them everything that a reader needs to compare them with others: how many clips, of which
size and length, drawn how, which covariance, which weights.

Shape letters: B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from evaluation.distances import METRICS, scores
from evaluation.features.base import FeatureNetwork
from evaluation.records import Record, versions
from video.clips import pad_last, to_clip, window_starts
from video.io import SUFFIXES, VideoError, read_frames

logger = logging.getLogger(__name__)

RANGE_SLACK = 1e-3

Window = Literal["first", "random", "all"]
Progress = Callable[[str, int], None]


def score_clips(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    networks: Sequence[FeatureNetwork],
    *,
    biased: bool = True,
    metrics: Sequence[str] = ("fvd",),
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distances between two sets of clips, with each network.

    Args:
        real, fake: each yields clips (3, F, H, W) or batches (B, 3, F, H, W), float in [-1, 1];
            gone through once. All clips of both sides have one length and one size, since mixing
            sizes alone moves a distance by hundreds of points.
        networks: from `evaluation.features.load.load_features`.
        biased: as in `evaluation.frechet.frechet_distance`.
        metrics: names of `evaluation.distances.METRICS`.
        batch_size: clips given to a network at a time.
        progress: called after each batch with "real" or "fake" and the number of clips done.

    Returns:
        `<metric>[<network>]` for each of both; `num_real`, `num_fake`, `num_frames`,
        `size` ([H, W]); `biased`; `networks`, a dict of checksums by name.

    Raises:
        ValueError: no network, no such metric, fewer than 2 clips on a side, clips out of range or
            of several sizes, features that are not finite.
    """
    if not networks:
        raise ValueError("no feature network was given to score with")
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise ValueError(f"no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    sides: dict[str, list[Tensor]] = {}
    shapes: set[tuple[int, ...]] = set()
    for side, clips in (("real", real), ("fake", fake)):
        parts: list[list[Tensor]] = [[] for _ in networks]
        done = 0
        for batch in _batches(clips, batch_size):
            shapes.add(tuple(batch.shape[1:]))
            _check(batch, side, done, shapes)
            for part, network in zip(parts, networks, strict=True):
                part.append(network(batch).detach().float().cpu())
            done += len(batch)
            if progress is not None:
                progress(side, done)
        if done < 2:
            raise ValueError(f"the {side} side has {done} clips; a distance needs 2 or more")
        sides[side] = [torch.cat(part) for part in parts]
    result: dict[str, Any] = {}
    for network, x, y in zip(networks, sides["real"], sides["fake"], strict=True):
        found = scores(x, y, metrics, biased)
        result |= {f"{metric}[{network.name}]": value for metric, value in found.items()}
    (_, num_frames, *size) = shapes.pop()
    return result | {
        "num_real": len(sides["real"][0]),
        "num_fake": len(sides["fake"][0]),
        "num_frames": num_frames,
        "size": size,
        "biased": biased,
        "networks": {network.name: network.checksum for network in networks},
    }


def _batches(clips: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of `batch_size` clips, (B, 3, F, H, W), from clips and batches of any number."""
    waiting: list[Tensor] = []
    for item in clips:
        if item.ndim not in (4, 5) or item.shape[-4] != 3:
            raise ValueError(
                f"clips are (3, F, H, W) and batches (B, 3, F, H, W), not {tuple(item.shape)}"
            )
        for clip in item[None] if item.ndim == 4 else item:
            if waiting and (len(waiting) == batch_size or clip.shape != waiting[0].shape):
                yield torch.stack(waiting)
                waiting = []
            waiting.append(clip)
    if waiting:
        yield torch.stack(waiting)


def _check(batch: Tensor, side: str, start: int, shapes: set[tuple[int, ...]]) -> None:
    """Refuse a batch of another shape than the others, or out of range."""
    if len(shapes) > 1:
        raise ValueError(
            f"clips have several shapes (3, F, H, W): {', '.join(map(str, sorted(shapes)))}; "
            "cut and resize both sides alike"
        )
    outside = ~(batch.flatten(1).abs().amax(1) <= 1 + RANGE_SLACK)  # true for NaN as well
    if outside.any():
        clip = int(outside.nonzero()[0])
        raise ValueError(
            f"clip {start + clip} of the {side} side reaches from {float(batch[clip].min()):.4g} "
            f"to {float(batch[clip].max()):.4g}; clips are in [-1, 1]"
        )


class FolderClips:
    """Clips of all videos under a folder, decoded while they are gone through.

    Attributes:
        files: the videos, sorted by their path under the folder.
        damaged: why a video could not be read, by its path under the folder; filled while the
            clips are gone through. Such a video gives no clip.
        padded: videos shorter than a clip, whose last frame was repeated.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int = 16,
        size: int = 128,
        window: Window = "first",
        seed: int = 42,
    ) -> None:
        """Find the videos; arguments as in `clips_from_folder`."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {self.folder}")
        if window not in ("first", "random", "all"):
            raise ValueError(f"window {window!r} is none of first, random, all")
        self.num_frames, self.size, self.window, self.seed = num_frames, size, window, seed
        self.files = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ValueError(f"no videos under {self.folder} ({', '.join(sorted(SUFFIXES))})")
        self.damaged: dict[str, str] = {}
        self.padded: list[str] = []

    def __iter__(self) -> Iterator[Tensor]:
        """Clips (3, F, size, size) float32 in [-1, 1], in order of the files."""
        self.damaged, self.padded = {}, []
        wanted = self.num_frames if self.window == "first" else None
        for path in self.files:
            name = path.relative_to(self.folder).as_posix()
            try:
                # All that is wanted before any is given: a file that breaks later gives nothing.
                frames = read_frames(path, 0, wanted, self.size)  # (F', size, size, 3)
            except (VideoError, OSError) as error:
                self.damaged[name] = str(error)
                logger.warning("skipped a damaged video: %s", error)
                continue
            if len(frames) < self.num_frames:
                self.padded.append(name)
            for start in self._starts(len(frames), name):
                window = frames[start : start + self.num_frames]
                yield to_clip(pad_last(window, self.num_frames))

    def _starts(self, length: int, name: str) -> list[int]:
        """First frames of the windows of a video."""
        if self.window == "all":
            return window_starts(length, self.num_frames)
        if self.window == "first":
            return [0]
        # Drawn from the name: adding a file to the folder changes no other's window.
        last = max(length - self.num_frames, 0)
        return [random.Random(f"{self.seed} {name}").randint(0, last)]


def clips_from_folder(
    folder: str | Path,
    num_frames: int = 16,
    size: int = 128,
    window: Window = "first",
    seed: int = 42,
) -> FolderClips:
    """Clips of all videos under a folder, subfolders included, for `score_clips`.

    Args:
        folder: holds videos of any sizes, lengths and common formats.
        num_frames: F; of a shorter video the last frame is repeated.
        size: short side resized to it, then the centre cut out: clips are (3, F, size, size).
        window: which frames of a video: the first F, F in a row at random, or every run of F
            without overlap.
        seed: of the random windows.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no videos.
    """
    return FolderClips(folder, num_frames, size, window, seed)


def score_folders(
    real: str | Path,
    fake: str | Path,
    networks: Sequence[FeatureNetwork],
    *,
    num_frames: int = 16,
    size: int = 128,
    window: Window = "first",
    seed: int = 42,
    biased: bool = True,
    metrics: Sequence[str] = ("fvd",),
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a folder of videos against another: the protocol `folder`.

    Arguments are those of `clips_from_folder` and `score_clips`. Beside what `score_clips` returns
    the result has `window`, `seed`, and for both sides `num_files_<side>`, `damaged_<side>`
    (reasons by file) and `padded_<side>` (files shorter than a clip).
    """
    folders = {
        side: clips_from_folder(folder, num_frames, size, window, seed)
        for side, folder in (("real", real), ("fake", fake))
    }
    result = score_clips(
        folders["real"],
        folders["fake"],
        networks,
        biased=biased,
        metrics=metrics,
        batch_size=batch_size,
        progress=progress,
    )
    result |= {"window": window, "seed": seed}
    for side, clips in folders.items():
        result[f"num_files_{side}"] = len(clips.files)
        result[f"damaged_{side}"] = clips.damaged
        result[f"padded_{side}"] = clips.padded
    return result


def folder_records(
    result: Mapping[str, Any], networks: Sequence[FeatureNetwork], name: str
) -> list[Record]:
    """Records of what `score_folders` returned, one for each network and distance.

    Args:
        result: of `score_folders`.
        networks: that it was given.
        name: of the fake side.
    """
    damaged = {f"{side}/{file}": reason for side in ("real", "fake")
               for file, reason in result[f"damaged_{side}"].items()}  # fmt: skip
    counts = {side: result[f"num_{side}"] for side in ("real", "fake")}
    settings = {key: result[key] for key in ("window", "seed", "biased", "num_frames", "size")}
    return [
        Record(
            name=name,
            protocol="folder",
            metric=metric,
            value=result[f"{metric}[{network.name}]"],
            network=network.name,
            checksum=network.checksum,
            num_clips=min(counts.values()),
            damaged=damaged,
            settings=settings | counts,
            versions=versions(),
        )
        for network in networks
        for metric in ("fvd", "fvd-infinity", "kvd", "jedi")  # those that are lower for better
        if f"{metric}[{network.name}]" in result
    ]
