"""The generator's training tokens: clips through the router and the final tokenizer, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from evatok.core.compute.devices import device_of, resolve_device
from evatok.core.config import Config, load_config
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.paths import paths_in, refuse_overwrite
from evatok.core.processes.distributed import RankInfo, rank_from_environment
from evatok.hub import load_model
from evatok.workflows.text import Captioner
from generator.conditions import FrameCondition, PrefixAssigner, TextCondition, uniform
from generator.data.parts import write_share
from generator.data.shards import Batch, Writer
from generator.grammar import Vocabulary
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.candidates import model_hash
from video.dataset import ClipSampler, DataConfig, Split


class TokensConfig(Config):
    """tokens.yaml."""

    stage: Literal["tokens"] = "tokens"
    data: DataConfig
    tokenizer: Path  # folder of the final tokenizer
    router: Path | None = None
    # Of a router with `preference`; None: the router's own.
    w_q: float | None = Field(default=None, ge=0, le=2)
    uniform: int | None = None  # the level of every block, instead of a router's choice
    frames: FrameCondition | None = None  # None: no frame prediction
    # Also class-conditional sequences; a generator whose frame_share is 1 needs none, and without
    # them each clip goes through the tokenizer once less.
    classes: bool = True
    text: Path | None = None  # folder that `evatok text train` made; None: no text
    max_pieces: int = Field(default=32, ge=1)  # of a text
    # .csv files with columns path and caption, such as `evatok data webvid` writes; none: captions
    # are made from what is measured
    captions: tuple[Path, ...] = ()
    # Clips of each training video, at random windows and with the data's augmentation.
    windows: int = Field(default=4, ge=1)
    batch_size: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)
    device: str = "auto"  # as in a training

    @model_validator(mode="after")
    def _check(self) -> TokensConfig:
        if (self.router is None) == (self.uniform is None):
            raise EvatokError("give a router or a uniform level, one of the two")
        if self.w_q is not None and self.router is None:
            raise EvatokError("w_q is the router's: leave it out with a uniform level")
        if self.captions and self.text is None:
            raise EvatokError("captions need text, the folder of their pieces (evatok text train)")
        return self


def run_tokens(
    path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None
) -> dict[str, Any]:
    """Write the shards that a settings file describes, into runs/FAMILY/STAGE if not told where.

    Processes that a launcher such as torchrun has started share the clips.
    """
    config = load_config(TokensConfig, path, overrides)
    folder = run_dir or Path("runs") / path.resolve().parent.name / path.stem
    written = [folder, folder / "train", folder / "test"]
    refuse_overwrite(written, [path, *paths_in(config)], links=False)
    return {"folder": str(folder), **write_shards(config, folder, rank_from_environment())}


def write_shards(
    config: TokensConfig, directory: Path, process: RankInfo | None = None
) -> dict[str, Any]:
    """Write directory/train and directory/test; finished ones are taken as they are.

    Killed ones go on at the batch they were at. Of several processes each does its share, and the
    last to finish a set puts it together.

    Args:
        config: what is written.
        directory: of both sets.
        process: which one this is; the only one by default.

    Returns:
        JSON-able: clips and mean tokens a clip of both, length tokens not counted; of a set that
        other processes are still at work on, `complete`: false.

    Raises:
        EvatokError: the folders hold tokens of other settings.
    """
    for path in (config.tokenizer, config.router):
        if path is not None and not (path / "config.json").is_file():
            raise MissingFileError(f"no model in {path}: train it first")
    device = resolve_device(config.device)
    tokenizer: VideoTokenizer = load_model(VideoTokenizer, config.tokenizer).to(device)
    assign, made_by = _assigner(config, tokenizer)
    captioner = None if config.text is None else Captioner.load(config.text)
    # What is not set is not named: shards of before it could be set are still the same.
    unset = set() if config.captions else {"captions"}
    unset |= {"text", "max_pieces"} if config.text is None else set()
    unset |= {"classes"} if config.classes else set()
    unset |= {"w_q"} if config.w_q is None else set()
    result: dict[str, Any] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        sampler = ClipSampler(config.data, split)
        vocabulary = Vocabulary(
            codebook_size=tokenizer.config.codebook_size,
            levels=tokenizer.config.levels,
            num_blocks=tokenizer.num_blocks,
            class_names=tuple(sampler.class_names),
            num_text=0 if captioner is None else len(captioner.pieces),
        )
        draw, clips = (_training if split == "train" else _held_out)(sampler, config)

        def moved(step: int, draw: Draw = draw) -> Batch:
            rows, labels, videos = draw(step)
            return rows.to(device), labels, videos

        writer = Writer(
            directory / split,
            tokenizer,
            assign,
            vocabulary,
            config.frames,
            note={
                "tokenizer": model_hash(tokenizer),
                **made_by,
                "settings": config.model_dump(
                    mode="json", exclude={"batch_size", "device"} | unset
                ),
            },
            classes=config.classes,
            **_text(config, captioner, sampler),
        )
        num_batches = -(-clips // config.batch_size)
        tokens = write_share(writer, moved, num_batches, config.batch_size, process)
        if tokens is None:
            result[split] = {"clips": clips, "complete": False}
            continue
        result[split] = {"clips": len(tokens), "mean_tokens": tokens.mean_tokens()}
    return result


def _assigner(
    config: TokensConfig, tokenizer: VideoTokenizer
) -> tuple[PrefixAssigner, dict[str, str | int]]:
    """Assigner of the lengths, and its name in the shards."""
    if config.router is not None:
        router: Router = load_model(Router, config.router).to(device_of(tokenizer))
        if config.w_q is not None and not router.config.preference:
            raise EvatokError(
                f"{config.router} knows w_q {router.config.w_q:g} only: leave out w_q, or give a "
                "router trained with model.preference"
            )
        return partial(router.assign, w_q=config.w_q), {"router": model_hash(router)}
    assert config.uniform is not None
    if config.uniform not in tokenizer.config.levels:
        raise EvatokError(
            f"uniform: {config.uniform} is not one of the tokenizer's levels "
            f"{tokenizer.config.levels}"
        )
    return uniform(config.uniform, tokenizer.num_blocks), {"uniform": config.uniform}


def _text(
    config: TokensConfig, captioner: Captioner | None, sampler: ClipSampler
) -> dict[str, Any]:
    """Caption arguments of a `Writer` of tokens."""
    if captioner is None:
        return {}
    condition = TextCondition(max_pieces=config.max_pieces, digest=captioner.pieces.digest)
    if config.captions:
        ids = [video for cache in sampler.caches for video in cache.ids]
        describe = captioner.look_up(config.captions, ids, config.max_pieces)
    else:
        seed = (config.seed, 1 + (sampler.split == "test"))
        describe = captioner.describe(sampler.class_names, *seed)
    return {"text": condition, "describe": describe}


Draw = Callable[[int], Batch]


def _training(sampler: ClipSampler, config: TokensConfig) -> tuple[Draw, int]:
    """Number → batch, and clips in all: every video `windows` times, sources by their weights."""
    wanted = config.windows * sum(sampler.per_epoch)
    first = _first_of_source(sampler)

    def draw(step: int) -> Batch:
        rows = min(config.batch_size, wanted - step * config.batch_size)
        clips, labels, windows = sampler.batch(step, config.batch_size, config.seed)
        videos = torch.tensor([first[w.source] + w.video for w in windows])
        return clips[:rows], labels[:rows], videos[:rows]

    return draw, wanted


def _held_out(sampler: ClipSampler, config: TokensConfig) -> tuple[Draw, int]:
    """Number → batch, and clips in all."""
    windows = sampler.eval_clips()
    first = _first_of_source(sampler)

    def draw(step: int) -> Batch:
        start = step * config.batch_size
        part = windows[start : start + config.batch_size]
        videos = torch.tensor([first[w.source] + w.video for w in part])
        return (*sampler.load(part), videos)

    return draw, len(windows)


def _first_of_source(sampler: ClipSampler) -> list[int]:
    """Number of each source's first video among all."""
    counts = [len(cache) for cache in sampler.caches]
    return [sum(counts[:i]) for i in range(len(counts))]
