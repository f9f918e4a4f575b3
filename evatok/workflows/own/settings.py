"""Own videos: one short file of settings, from which those of every stage follow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from evaluation.encoders.nano import MIN_FRAMES
from evatok.core.config import Config, ConfigError, Frames, Level, PictureSize
from evatok.workflows.own.start import Part, read_start
from video.clips import Size, sides

Preset = Literal["quick", "standard", "long"]
PATCH = (4, 8, 8)  # frames, rows, columns
MOST_CANDIDATES = 4096  # assignments that the search tries for each clip
MOST_QUICK = 81  # of these, for the quick preset
GOING_ON = 0.5  # learning rates of what starts trained, as a share of those from nothing


class Amount(NamedTuple):
    """Size of a preset: optimiser steps, rows of a step, clips."""

    tokenizer: int
    router: int
    generator: int
    batch: int
    searched: int
    measured: int


PRESETS: dict[str, Amount] = {
    "quick": Amount(16, 10, 24, 8, 8, 8),
    "standard": Amount(900, 500, 1300, 32, 1920, 256),
    "long": Amount(4000, 1500, 5000, 32, 4000, 512),
}


class OwnConfig(Config):
    """NAME.yaml, written by `evatok init`: all that a person edits.

    Attributes:
        data: folder of the videos.
        videos: csv with columns path, class, split and perhaps caption.
        run_dir: of all results.
        size: pixels of the picture that is cut from the middle of each video: the side of a
            square, or [height, width].
        frames: of a clip.
        levels: permitted tokens of a block of 4 frames.
        preset: how long everything is trained.
        compile: standard and long compile the tokenizer's layers, which is two to three times as
            fast; on a CPU that needs a C++ compiler.
        captions: the list has a caption of each video, which the generator learns.
        start_from: models that every stage goes on from, whose size, frames and levels these are:
            the name of shipped ones, a run, a folder. None: all is learned from these videos.
    """

    stage: Literal["own"] = "own"
    data: Path
    videos: Path
    run_dir: Path
    size: PictureSize = 64
    frames: Frames = 16
    levels: tuple[Level, ...] = Field(min_length=1)
    preset: Preset = "standard"
    compile: bool = True
    captions: bool = False
    start_from: str | None = None


def default_levels(size: Size, preset: Preset) -> tuple[int, ...]:
    """Up to five powers of 2, the highest at most the number of patches of a frame, or 256.

    The quick preset has every second one: its search tries 81 assignments, not 625.
    """
    height, width = sides(size)
    top = min(256, 1 << (height // PATCH[1] * (width // PATCH[2])).bit_length() - 1)
    halvings = (4, 2, 0) if preset == "quick" else (4, 3, 2, 1, 0)
    return tuple(top >> down for down in halvings if top >> down)


def check_shape(size: Size, frames: int) -> None:
    """Refuse sizes that no model can be built with, in one line that names the nearest one."""
    near = [
        max(2 * part, round(side / part) * part)
        for side, part in zip(sides(size), PATCH[1:], strict=True)
    ]
    if tuple(near) != sides(size):
        given, fits = ("x".join(map(str, reversed(pair))) for pair in (sides(size), near))
        if isinstance(size, int):
            given, fits = str(size), str(near[0])
        raise ConfigError(f"size {given} is not a multiple of {PATCH[1]} from 16 on: give {fits}")
    if frames % PATCH[0] or frames < PATCH[0]:
        near = max(PATCH[0], round(frames / PATCH[0]) * PATCH[0])
        raise ConfigError(f"frames {frames} is not a multiple of {PATCH[0]}: give {near}")


def check_levels(frames: int, levels: tuple[int, ...]) -> None:
    """Refuse levels that do not rise, and more assignments than a search tries."""
    if any(a >= b for a, b in pairwise(levels)):
        raise ConfigError(f"levels {list(levels)} do not rise: give them in order, each once")
    blocks = frames // PATCH[0]
    if len(levels) ** blocks > MOST_CANDIDATES:
        raise ConfigError(
            f"{frames} frames are {blocks} blocks; with {len(levels)} levels a clip has "
            f"{len(levels) ** blocks} assignments, more than {MOST_CANDIDATES}: give fewer of both"
        )


def derive(own: OwnConfig) -> dict[str, dict[str, Any]]:
    """The settings of every stage, by name, as `pipeline_settings.FILES` reads them."""
    check_shape(own.size, own.frames)
    check_levels(own.frames, own.levels)
    amount, run, levels = PRESETS[own.preset], own.run_dir, list(own.levels)
    start = None if own.start_from is None else read_start(own.start_from, run)
    if start is not None:
        start.check(own.size, own.frames, own.levels)
    data = {
        "num_frames": own.frames,
        "size": own.size,
        "cache_dir": run / "cache",
        "flip": True,
        "sources": [{"kind": "folder", "root": own.data, "videos": own.videos}],
    }
    shape = {"levels": levels, "num_frames": own.frames, "size": own.size, "patch": list(PATCH)}

    def train(steps: int, **more: Any) -> dict[str, Any]:
        return {
            "steps": steps,
            "batch_size": amount.batch,
            "precision": "fp32" if own.preset == "quick" else "bf16",
            "log_every": min(20, max(1, steps // 4)),
            "validate_every": max(1, steps // 3),
            "save_every": 200,
            "optimizer": {"name": "muon", "lr": 1e-3, "muon_lr": 2e-3},
            "schedule": {"name": "cosine", "warmup_steps": min(50, steps // 10),
                         "final_ratio": 0.01},
        } | more  # fmt: skip

    tokenizer = {
        "data": data,
        "model": shape
        | {
            "encoder": {"width": 128, "layers": 3, "heads": 2},
            "decoder": {"width": 128, "layers": 4, "heads": 2},
            "codebook_size": 1024,
            "code_dim": 8,
            "decoder_start": "aligned",
        },
        "loss": {"l1": 0.5, "l2": 1.0, "codebook": 1.0, "commitment": 0.25, "entropy": 0.02},
        "assignments_per_batch": 8,
        "start_from_data": True,
        "validation_clips": min(64, amount.measured),
        "train": train(
            amount.tokenizer,
            compile=own.compile and own.preset != "quick",
            optimizer={"name": "muon", "lr": 2e-3, "muon_lr": 5e-3},
        ),
    }
    proxy, final = tokenizer, tokenizer | {"router": run / "router" / "model"}
    search = {
        "data": data,
        "model": run / "proxy" / "model",
        "clips": amount.searched,
        "held_out_clips": min(128, amount.measured),
        "batch_size": amount.batch,
        "seed": 1,
    }
    if own.preset == "quick" and len(levels) ** (own.frames // PATCH[0]) > MOST_QUICK:
        search["candidates"] = MOST_QUICK
    router = {
        "data": data,
        "model": shape | {"width": 128, "layers": 4, "heads": 2},
        "table": run / "search" / "train",
        "held_out_table": run / "search" / "test",
        "search_batch": search["batch_size"],
        "search_seed": search["seed"],
        "w_q": 1.5,
        "target_temperature": 0.1,
        "start_from_data": True,
        "train": train(amount.router),
    }
    preference = router | {
        "model": router["model"] | {"preference": True},
        "w_q_range": [0.4, 2.0],
    }
    given: Any = {"num_frames": 5, "prefix": [levels[-1], levels[-3:][0]]}
    if start is not None and start.frames is not None:
        given = start.frames.model_dump(mode="json")
    elif own.frames < 8:
        given = None
    text = {"data": data, "captions": own.videos, "vocabulary_size": 512}
    tokens = {
        "data": data,
        "tokenizer": run / "final" / "model",
        "router": run / "router" / "model",
        "frames": given,
        "windows": 2,
        "batch_size": amount.batch,
        "seed": 2,
    } | ({"text": run / "text", "captions": [own.videos]} if own.captions else {})
    generator = {
        "tokens": run / "tokens",
        "tokenizer": run / "final" / "model",
        "model": {"width": 256, "layers": 5, "heads": 4, "hidden": 592, "dropout": 0.1},
        "frame_share": 0.3 if given else 0.0,
        "text_share": 0.4 if own.captions else 0.0,
        "validation_clips": amount.measured,
        "sampling": {"guidance": 2.0},
        "train": train(amount.generator, ema_decay=0.9 if own.preset == "quick" else 0.999),
    }
    if start is not None:
        proxy, final = _going_on(proxy, start.proxy), _going_on(final, start.final)
        router = _going_on(router, start.router)
        preference = _going_on(preference, start.preference)
        generator = _going_on(generator, start.generator)
    report = {
        "clips": amount.measured,
        "networks": ["nano"] if own.frames >= MIN_FRAMES else [],  # it needs as many frames
        "guidance": [2.0],
    }
    return {
        "pipeline": {"run_dir": run, "gate": None, "report": report},
        "proxy": proxy,
        "search": search,
        "router": router,
        "preference": preference,
        "final": final,
        **({"text": text} if own.captions else {}),
        "tokens": tokens,
        "generator": generator,
    }


def _going_on(stage: dict[str, Any], part: Part | None) -> dict[str, Any]:
    """Settings of a stage that starts from a trained part, if there is one, with its sizes."""
    if part is None:
        return stage
    made = dict(stage, model=dict(part.model), start_from=part.folder)
    if "start_from_data" in stage:
        made["start_from_data"] = False
    if "table" in stage:  # a router, of which the training writes what it has learned
        for name in ("w_q", "standard", "quality"):
            del made["model"][name]
        made["model"]["preference"] = stage["model"].get("preference", False)
    optimizer = stage["train"]["optimizer"]
    slower = {name: GOING_ON * optimizer[name] for name in ("lr", "muon_lr")}
    made["train"] = stage["train"] | {"optimizer": optimizer | slower}
    return made
