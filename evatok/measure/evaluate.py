"""Published protocols run on a model: reconstruct, sample or predict, then score.

| protocol | clips | what is made |
| --- | --- | --- |
| `ucf101-rfvd` | training list, the first window of each video, 9 537 | their reconstructions |
| `ucf101-gfvd` | training list, 10 000 of all windows | a sample of the class of each window |
| `k600-fp` | validation list, 50 000 of all windows | their continuation; both sides at 64 × 64 |
| `arcade-rfvd`, `-gfvd`, `-fp` | held-out files, all windows | likewise, at their own size |

Windows are drawn with `random.Random(42).sample` from all non-overlapping ones, as LARP does.
Clips are scored as the model gives them, clamped and not rounded to bytes. Features and numbers are
filed clip by clip, so a killed run goes on where it was and ends with the same record.

Shape letters: B batch, N clips, F frames, H W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evaluation.encoders.base import FeatureNetwork
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.records import write_records
from evaluation.scoring.score import records_of, score_sides
from evatok.core.compute.devices import resolve_device
from evatok.core.config import Config, load_config
from evatok.core.errors import EvatokError
from evatok.core.files import check_writable
from evatok.core.paths import paths_in, refuse_overwrite
from evatok.core.processes.distributed import joined_rank
from evatok.core.suggest import did_you_mean
from evatok.generate.samples import frame_condition, guidance_of
from evatok.hub import load
from evatok.measure.protocol_sides import (
    CHUNK,
    EvaluationSettings,
    FakeSide,
    StillSide,
    draw,
    fake_side,
)
from evatok.measure.protocols import PROTOCOLS, Protocol, ProtocolKind
from tokenizer.coding.rate import Rate
from tokenizer.search.reward import psnr_of_mse
from tokenizer.tokens import Tokens
from video.clips import sides
from video.dataset import DataConfig

Say = Callable[[str], None]


class DataFile(Config):
    """data.yaml."""

    data: DataConfig


def evaluate(
    settings: EvaluationSettings,
    networks: Sequence[FeatureNetwork],
    *,
    metrics: Sequence[str] = ("fvd",),
    cache: FeatureCache | None = None,
    record: Path | None = None,
    name: str = "",
    say: Say = print,
) -> dict[str, Any]:
    """Run a protocol on a model.

    Processes that are joined (`evatok.core.processes.distributed.joined`) share the clips.

    Args:
        settings: what and with what.
        networks: of the distances.
        metrics: names of `evaluation.metrics.registry.METRICS`.
        cache: of features and of numbers of single clips.
        record: file for the records, one a network and distance.
        name: of the model in them.
        say: told how far it is.

    Returns:
        JSON-able: scores as `score_sides` gives them, and quality and tokens of what was made;
        nothing in other processes than the first. With `settings.still` also `still`, the same of
        a frame that stands still: each clip's first, or the last of those that are given.

    Raises:
        EvatokError: no such protocol, fewer clips than it wants, no source that it is meant for, or
            a model that cannot do it.
    """
    started = time.monotonic()
    protocol = _protocol(settings.protocol)
    data = load_config(DataFile, settings.data).data
    models = load(settings.model, resolve_device(settings.device))
    if record is not None:
        caches = [] if cache is None else [cache.path]
        read = [settings.data, models.directory, *paths_in(data), *caches]
        refuse_overwrite([record], read, links=False)
        check_writable(record)
    if protocol.kind == "gfvd":
        settings = replace(settings, guidance=guidance_of(models, settings.guidance))
    if settings.window is not None and protocol.kind != "rfvd":
        raise EvatokError(
            f"--window is for reconstructions; {settings.protocol} has windows of its own"
        )
    if settings.refine_steps and protocol.kind != "rfvd":
        raise EvatokError(f"--refine is for reconstructions; {settings.protocol} has none")
    if settings.still and protocol.kind == "gfvd":
        raise EvatokError(
            "--still is for reconstructions and predictions; a sample has no first frame to stand"
        )
    real = draw(protocol, data, settings.count, settings.window)
    made = fake_side(protocol, models, real, settings)
    if protocol.resize == "float" and real.is_copied:
        say(
            f"{real.root} holds copies that were encoded anew: papers score the original files, "
            "see docs/evaluation.md"
        )

    process = joined_rank()
    mine = sum(map(len, real.chunks(process)))

    def progress(side: str, done: int) -> None:
        if process.rank == 0:
            say(f"{side}: {done} of {mine} clips{' of this process' * (process.world > 1)}")

    def scored(side: FakeSide | StillSide) -> dict[str, Any]:
        return score_sides(
            real,
            side,
            networks,
            metrics=metrics,
            cache=cache,
            batch_size=CHUNK,
            with_interval=True,
            progress=progress,
        )

    result = scored(made)
    standing: dict[str, Any] = {}
    if settings.still:
        given = frame_condition(models).num_frames if protocol.kind == "fp" else 1
        side = StillSide(real, given)
        found = scored(side)
        shown = {key: value for key, value in found.items() if "[" in key}
        standing = {"still": shown | means_of(list(side.notes.values()), ("psnr", "moving_psnr"))}
    if not result:
        return result
    config = models.final.config
    pixels = config.num_frames * math.prod(sides(config.size))
    quality = summary(list(made.notes.values()), config.codebook_size, len(config.levels), pixels)
    if protocol.kind == "rfvd" and "lpips" not in quality:
        quality["lpips"] = "absent"
        say("no LPIPS: its weights are not here, `evatok weights` tells where they go")
    result |= {"protocol": settings.protocol, "cut": real.cut.model_dump(mode="json")}
    if protocol.kind == "fp":
        result["given"] = protocol.given
    result |= {"split": protocol.split, "num_frames": real.cut.num_frames}
    result |= {"size": list(sides(real.cut.shrink or real.cut.size)), "data": real.fingerprint()}
    result |= {"copies": True} if real.is_copied else {}
    result |= {"model": made.origin, **quality, **standing}
    if record is not None:
        extra = quality | _choices(protocol.kind, settings)
        refined = f" refined {settings.refine_steps}" if settings.refine_steps else ""
        rows = records_of(
            result,
            networks,
            name or settings.model + refined,
            settings.protocol,
            model=made.origin,
            seconds=round(time.monotonic() - started, 1),
            extra=extra,
        )
        write_records(record, rows)
    return result


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise EvatokError(
            f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def _choices(kind: ProtocolKind, settings: EvaluationSettings) -> dict[str, Any]:
    """Choices that belong to the model, not to the protocol."""
    if kind == "rfvd":
        refined = {"refine_steps": settings.refine_steps} if settings.refine_steps else {}
        return {"assignment": settings.assignment, **refined}
    return {"guidance": settings.guidance if kind == "gfvd" else 1.0, "seed": settings.seed}


def summary(
    notes: Sequence[dict[str, Any]], codebook_size: int, num_levels: int, pixels: int
) -> dict[str, Any]:
    """Means over clips.

    Args:
        notes: of each clip, as `FakeSide.notes`.
        codebook_size: K.
        num_levels: m.
        pixels: of a clip, over all its frames.

    Returns:
        `mean_tokens`, what `tokenizer.coding.rate.Rate` tells, and as far as the notes tell `psnr`
        (mean of the clips'), `psnr_pooled` (of the mean error), `moving_psnr` (of the clips in
        which something moves), `ssim`, `lpips`, `psnr_predicted`, `moving_psnr_predicted`.
    """
    keys = (
        "psnr",
        "moving_psnr",
        "ssim",
        "lpips",
        "mse",
        "psnr_predicted",
        "moving_psnr_predicted",
    )
    means = means_of(notes, keys)
    if "mse" in means:
        means["psnr_pooled"] = float(psnr_of_mse(torch.tensor(means.pop("mse"))))
    rate = Rate(codebook_size, num_levels)
    for note in notes:
        tokens = Tokens(torch.tensor(note["ids"]), torch.tensor([note["assignment"]]))
        rate.update(tokens, pixels)
    tokens_per_clip = sum(len(note["ids"]) for note in notes) / len(notes)
    return means | {"mean_tokens": tokens_per_clip} | rate.compute()


def means_of(notes: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, float]:
    """The mean of each of these numbers over the clips whose notes tell it."""
    means = {}
    for key in keys:
        values = [note[key] for note in notes if note.get(key) is not None]
        if values:
            means[key] = sum(values) / len(values)
    return means
