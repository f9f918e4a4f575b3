"""From two sets of clips, or two folders of videos, to scores that say how they were made.

A result is a flat dict that goes into JSON as it is: the distances under `fvd[<network>]`, and
beside them everything that a reader needs to compare them with others: how many clips, of which
size and length, drawn how, which covariance, which weights.

Shape letters: B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.features import check_finite, in_order
from evaluation.metrics.fvd_infinity import FEWEST, Ids, interval
from evaluation.metrics.registry import METRICS, scores
from evaluation.scoring.clips import ALONE, Cut, Source, VideoClips
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.records import Record, versions
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import (
    RankInfo,
    gather,
    joined_rank,
    num_processes,
    wait_for_all,
)
from evatok.core.processes.threads import one_thread
from evatok.core.suggest import did_you_mean
from video.clips import sides

logger = logging.getLogger(__name__)

RANGE_SLACK = 1e-3

SideProgress = Callable[[str, int], None]


def score_clips(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    networks: Sequence[FeatureNetwork],
    *,
    biased: bool = True,
    metrics: Sequence[str] = ("fvd",),
    batch_size: int = 16,
    progress: SideProgress | None = None,
) -> dict[str, Any]:
    """Distances between two sets of clips, with each network.

    Args:
        real, fake: each yields clips (3, F, H, W) or batches (B, 3, F, H, W), float in [-1, 1];
            gone through once. All clips of both sides have one length and one size, since mixing
            sizes alone moves a distance by hundreds of points.
        networks: from `evaluation.encoders.load.load_features`.
        biased: as in `evaluation.metrics.frechet.frechet_distance`.
        metrics: names of `evaluation.metrics.registry.METRICS`.
        batch_size: clips given to a network at a time.
        progress: called after each batch with "real" or "fake" and the number of clips done.

    Returns:
        `<metric>[<network>]` for each of both; `num_real`, `num_fake`, `num_frames`,
        `size` ([H, W]); `biased`; `networks`, a dict of checksums by name.

    Raises:
        EvatokError: no network, no such metric, fewer than 2 clips on a side, clips out of range or
            of several sizes, features that are not finite.
    """
    check_metrics(networks, metrics)
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
            raise EvatokError(f"the {side} side has {done} clips; a distance needs 2 or more")
        sides[side] = [torch.cat(part) for part in parts]
    (_, num_frames, *size) = shapes.pop()
    result = _scored(sides, networks, metrics, biased)
    return result | {"num_frames": num_frames, "size": size}


def _batches(clips: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of `batch_size` clips, (B, 3, F, H, W), from clips and batches of any number."""
    waiting: list[Tensor] = []
    for item in clips:
        if item.ndim not in (4, 5) or item.shape[-4] != 3:
            raise EvatokError(
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
        raise EvatokError(
            f"clips have several shapes (3, F, H, W): {', '.join(map(str, sorted(shapes)))}; "
            "cut and resize both sides alike"
        )
    outside = ~(batch.flatten(1).abs().amax(1) <= 1 + RANGE_SLACK)  # true for NaN as well
    if outside.any():
        clip = int(outside.nonzero()[0])
        raise EvatokError(
            f"clip {start + clip} of the {side} side reaches from {float(batch[clip].min()):.4g} "
            f"to {float(batch[clip].max()):.4g}; clips are in [-1, 1]"
        )


class Features(NamedTuple):
    """Features of a source's clips, those of this process.

    Attributes:
        numbers: (N,) int64, order of the clips in the source.
        names: of the clips.
        vectors: for each network (N, D) float32.
    """

    numbers: Tensor
    names: list[str]
    vectors: list[Tensor]


def features_of(
    clips: Source,
    networks: Sequence[FeatureNetwork],
    cache: FeatureCache | None = None,
    *,
    batch_size: int = 16,
    process: RankInfo = ALONE,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of all clips of a source, by each network; those that a cache knows are not made.

    What is made is filed after each batch: a killed run goes on where it was.

    Args:
        clips: where they come from.
        networks: that see them.
        cache: of features; None: everything is made.
        batch_size: clips given to a network at a time.
        process: this one of those that share the clips.
        progress: called with the number of clips done.
    """
    found: list[dict[str, Tensor]] = [{} for _ in networks]
    items: list[tuple[int, str, str]] = []
    waiting: dict[str, Tensor] = {}

    def lacks(key: str) -> bool:
        missing = False
        for network, mine in zip(networks, found, strict=True):
            if key not in mine and cache is not None:
                vector = cache.get(network, key)
                if vector is not None:
                    mine[key] = vector
            missing |= key not in mine
        return missing

    def make() -> None:
        for network, mine in zip(networks, found, strict=True):
            keys = [key for key in waiting if key not in mine]
            if not keys:
                continue
            vectors = network(torch.stack([waiting[key] for key in keys])).detach().float().cpu()
            made = dict(zip(keys, vectors, strict=True))
            mine |= made
            if cache is not None:
                cache.put(network, made)
        waiting.clear()

    for number, name, key, clip in clips.walk(lacks, cache, process):
        items.append((number, name, key))
        if clip is not None and lacks(key):
            waiting[key] = clip
        if len(waiting) == batch_size:
            make()
        if progress is not None and len(items) % batch_size == 0:
            progress(len(items))
    make()
    vectors = [torch.stack([mine[key] for *_, key in items]) if items
               else torch.empty(0, network.dim)
               for network, mine in zip(networks, found, strict=True)]  # fmt: skip
    numbers = torch.tensor([number for number, *_ in items], dtype=torch.int64)
    return Features(numbers, [name for _, name, _ in items], vectors)


def score_sides(
    real: Source,
    fake: Source,
    networks: Sequence[FeatureNetwork],
    *,
    biased: bool = True,
    metrics: Sequence[str] = ("fvd",),
    cache: FeatureCache | None = None,
    batch_size: int = 16,
    with_interval: bool = False,
    progress: SideProgress | None = None,
) -> dict[str, Any]:
    """Distances between two sources, with each network.

    Processes that are joined (`evatok.core.processes.distributed.joined`) share the clips; every
    one must call this. Arguments are those of `score_clips` and `features_of`.

    Returns:
        In the first process the scores, `num_real`, `num_fake`, `biased`, `networks`, and with
        `with_interval` `interval[<network>]`, the 95 % interval of "fvd"; in the others nothing.
        The same bits for any number of processes, where features have them.
    """
    check_metrics(networks, metrics)
    sides: dict[str, Features] = {}
    for side, clips in (("real", real), ("fake", fake)):
        tell = None if progress is None else partial(progress, side)
        sides[side] = shared_features(
            clips, networks, side, cache, batch_size=batch_size, progress=tell
        )
    if joined_rank().rank:
        return {}
    ids = (sides["real"].names, sides["fake"].names)
    vectors = {side: features.vectors for side, features in sides.items()}
    return _scored(vectors, networks, metrics, biased, with_interval, ids)


def shared_features(
    clips: Source,
    networks: Sequence[FeatureNetwork],
    side: str,
    cache: FeatureCache | None = None,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of all clips, made by all joined processes and given to each, in order of clips.

    Args:
        side: what the clips are, for messages; others as for `features_of`.

    Raises:
        ValueError: fewer than two clips, or features that are not finite.
    """
    mine = features_of(
        clips, networks, cache, batch_size=batch_size, process=joined_rank(), progress=progress
    )
    wait_for_all()
    clips.exchange()
    named = zip(mine.numbers.tolist(), mine.names, strict=True)
    every = sorted(tuple(pair) for part in gather(list(named)) for pair in part)
    if len(every) < 2:
        raise EvatokError(
            f"the {side} side has {len(every)} clips; a distance needs 2 or more (and hundreds to "
            "mean something): add videos, or take more windows of each (--window all)"
        )
    whole = []
    for network, vectors in zip(networks, mine.vectors, strict=True):
        check_finite(vectors, f"the {side} side", mine.numbers)
        if num_processes() == 1:  # without the import, which takes longer than torch's
            whole.append(in_order(vectors.cpu(), mine.numbers))
            continue
        from evaluation.metrics.feature_metric import FeatureSets

        metric = FeatureSets(network.dim)
        metric.update(vectors, mine.numbers, real=True)
        whole.append(metric.compute()[0])
    numbers = torch.tensor([number for number, _ in every], dtype=torch.int64)
    return Features(numbers, [name for _, name in every], whole)


def check_metrics(networks: Sequence[FeatureNetwork], metrics: Sequence[str]) -> None:
    """Refuse no network, no metric, and metrics that there are not."""
    if not networks:
        raise EvatokError("no feature network was given to score with")
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        near = did_you_mean(unknown[0], METRICS) if unknown else ""
        raise EvatokError(f"no metric {', '.join(unknown)}; there are {', '.join(METRICS)}{near}")


def _scored(
    sides: Mapping[str, Sequence[Tensor]],
    networks: Sequence[FeatureNetwork],
    metrics: Sequence[str],
    biased: bool,
    with_interval: bool = False,
    ids: Ids | None = None,
) -> dict[str, Any]:
    counts = [len(sides[side][0]) for side in ("real", "fake")]
    if counts[0] != counts[1]:
        logger.warning(
            "%d real clips against %d: such a number compares only with others of these counts",
            *counts,
        )
    if with_interval and min(counts) < FEWEST:
        logger.warning("no interval: it takes %d clips a side", FEWEST)
    result: dict[str, Any] = {}
    for network, x, y in zip(networks, sides["real"], sides["fake"], strict=True):
        found = scores(x, y, metrics, biased, ids)
        result |= {f"{metric}[{network.name}]": value for metric, value in found.items()}
        if with_interval and "fvd" in metrics and min(counts) >= FEWEST:
            with one_thread():
                _, low, high = interval(x, y, ids=ids, biased=biased)
            result[f"interval[{network.name}]"] = [low, high]
    return result | {
        "num_real": len(sides["real"][0]),
        "num_fake": len(sides["fake"][0]),
        "biased": biased,
        "networks": {network.name: network.checksum for network in networks},
    }


def score_folders(
    real: str | Path,
    fake: str | Path,
    networks: Sequence[FeatureNetwork],
    *,
    cut: Cut | None = None,
    biased: bool = True,
    metrics: Sequence[str] = ("fvd",),
    cache: FeatureCache | None = None,
    batch_size: int = 16,
    with_interval: bool = False,
    progress: SideProgress | None = None,
) -> dict[str, Any]:
    """Score anyone's videos against others: folders, files or arrays.

    Arguments are those of `VideoClips` and `score_sides`. Beside what `score_sides` returns the
    result has `cut`, `num_frames` and `size` ([H, W]) of what the networks saw, `data` (the
    fingerprint of the real side, where there is a cache), and for both sides `num_files_<side>`,
    `damaged_<side>` (reasons by name), `padded_<side>` (videos shorter than a clip) and, where the
    cut leaves these out, `short_<side>`.
    In other processes than the first it is empty.
    """
    cut = cut or Cut()
    inputs = {side: VideoClips(path, cut) for side, path in (("real", real), ("fake", fake))}
    result = score_sides(
        inputs["real"],
        inputs["fake"],
        networks,
        biased=biased,
        metrics=metrics,
        cache=cache,
        batch_size=batch_size,
        with_interval=with_interval,
        progress=progress,
    )
    if not result:
        return result
    result |= {"num_frames": cut.num_frames, "size": list(sides(cut.shrink or cut.size))}
    result["cut"] = cut.model_dump(mode="json")
    result["data"] = inputs["real"].fingerprint()
    for side, clips in inputs.items():
        result[f"num_files_{side}"] = len(clips.videos)
        result[f"damaged_{side}"] = clips.damaged
        result[f"padded_{side}"] = clips.padded
        if cut.short == "skip":
            result[f"short_{side}"] = clips.short
    return result


def records_of(
    result: Mapping[str, Any],
    networks: Sequence[FeatureNetwork],
    name: str,
    protocol: str = "folder",
    **more: Any,
) -> list[Record]:
    """Records of what `score_folders` or `score_sides` returned, one a network and distance.

    Args:
        result: of the scoring.
        networks: that it was given.
        name: of what is on the fake side.
        protocol: by which the clips were drawn.
        more: further fields of the records, such as `model`, `seconds`, `extra`.
    """
    damaged = {f"{side}/{file}": reason for side in ("real", "fake")
               for file, reason in result.get(f"damaged_{side}", {}).items()}  # fmt: skip
    counts = {side: result[f"num_{side}"] for side in ("real", "fake")}
    settings = {key: result[key] for key in ("cut", "biased", "num_frames", "size")}
    settings |= {"given": result["given"]} if "given" in result else {}
    return [
        Record(
            name=name,
            protocol=protocol,
            metric=metric,
            value=result[f"{metric}[{network.name}]"],
            interval=result.get(f"interval[{network.name}]") if metric == "fvd" else None,
            network=network.name,
            checksum=network.checksum,
            num_clips=min((n for n in counts.values() if n is not None), default=None),
            damaged=damaged,
            settings=settings | counts,
            data=result.get("data", ""),
            versions=versions(),
            **more,
        )
        for network in networks
        for metric in ("fvd", "fvd-infinity", "kvd", "jedi")  # those that are lower for better
        if f"{metric}[{network.name}]" in result
    ]
