"""Stage 2 from a settings file: the table of all assignments, for training and held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from evatok.models import load_model
from tokenizer.model import VideoTokenizer
from tokenizer.search import Method, curate
from training.config import Config, load_config
from training.precision import fast_float32
from video.dataset import ClipSampler, DataConfig, Window

Progress = Callable[[str, int, int], None]  # "train" or "test", clips done, clips in all


class SearchConfig(Config):
    """What is searched, and with what."""

    stage: Literal["search"] = "search"
    data: DataConfig  # as in the router's settings, which load the same clips again
    model: Path  # folder of the proxy tokenizer
    clips: int = Field(ge=1)  # training clips, rounded up to whole batches
    held_out_clips: int | None = Field(default=None, ge=1)  # of the test split; None: all
    # Held-out clips, one of a video, drawn as `ClipSampler.eval_clips` does; all if None.
    held_out_clips: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)
    method: Method = "tree"
    precision: Literal["fp32", "bf16"] = "fp32"


def run_search(
    path: Path,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search what a settings file says; a killed search goes on where it was.

    Returns:
        JSON-able: folders of both tables and their numbers of clips.
    """
    config = load_config(SearchConfig, path, overrides)
    folder = run_dir or Path("runs") / path.resolve().parent.name / path.stem
    return search_config(config, folder, progress)


def search_config(
    config: SearchConfig, run_dir: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """As `run_search`, for settings that have been read."""
    if not (config.model / "config.json").is_file():
        raise FileNotFoundError(f"model: no tokenizer in {config.model}: train the proxy first")
    model: VideoTokenizer = load_model(VideoTokenizer, config.model)
    result: dict[str, Any] = {"candidates": model.levels.num_candidates(model.num_blocks)}
    for split in ("train", "test"):
        sampler = ClipSampler(config.data, split)
        if split == "train":
            num_batches = -(-config.clips // config.batch_size)
            total = num_batches * config.batch_size
            batch = _training_batches(sampler, config)
        else:
            windows = sampler.eval_clips(config.held_out_clips)
            num_batches, total = -(-len(windows) // config.batch_size), len(windows)
            batch = _held_out_batches(sampler, windows, config.batch_size)
        with fast_float32(torch.device("cpu")):
            for done in curate(
                model,
                batch,
                num_batches,
                run_dir / split,
                method=config.method,
                autocast=config.precision == "bf16",
            ):
                if progress is not None:
                    progress(split, done, total)
        result[split] = {"table": str(run_dir / split), "clips": total}
    return result


def _training_batches(
    sampler: ClipSampler, config: SearchConfig
) -> Callable[[int], tuple[Tensor, list[str]]]:
    """Batch number → clips and names; the router's stage draws the same ones."""

    def batch(number: int) -> tuple[Tensor, list[str]]:
        clips, _, windows = sampler.batch(number, config.batch_size, config.seed)
        return clips, [sampler.name(window) for window in windows]

    return batch


def _held_out_batches(
    sampler: ClipSampler, windows: Sequence[Window], size: int
) -> Callable[[int], tuple[Tensor, list[str]]]:
    def batch(number: int) -> tuple[Tensor, list[str]]:
        part = windows[number * size : (number + 1) * size]
        return sampler.load(part)[0], [sampler.name(window) for window in part]

    return batch
