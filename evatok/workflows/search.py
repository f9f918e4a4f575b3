"""Stage 2 from a settings file: the table of all assignments, for training and held-out clips."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from evaluation.metrics.quality import MOTION, REACH
from evaluation.perceptual.load import load_perceptual
from evatok.core.compute.devices import resolve_device
from evatok.core.compute.precision import fast_float32_matmul
from evatok.core.config import Config, load_config
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.extras import extra
from evatok.core.paths import paths_in, refuse_overwrite
from evatok.core.processes.distributed import rank_from_environment
from evatok.core.processes.pools import end_with_parent
from evatok.hub import load_model
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import Method, drawn_candidates
from tokenizer.search.table import Recorded, curate, shard_path
from video.dataset import ClipSampler, DataConfig, Window
from video.lists import Split

with extra("train"):
    import pyarrow.parquet as pq

DECIDING = ("batch_size", "seed", "precision")
SplitProgress = Callable[[str, int, int], None]  # "train" or "test", clips done, clips in all


class Pace:
    """Tells how a search gets on: clips done, clips a second, time left."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        # When and how many, the last few times: shards that were there already cost nothing.
        self._last: dict[str, deque[tuple[float, int]]] = {}

    def __call__(self, split: str, done: int, total: int) -> None:
        """A `SplitProgress`."""
        last = self._last.setdefault(split, deque(maxlen=20))
        last.append((time.monotonic(), done))
        seconds, clips = (b - a for a, b in zip(last[0], last[-1], strict=True))
        text = f"{split}: {done} of {total} clips"
        if clips and seconds:
            left = timedelta(seconds=round((total - done) * seconds / clips))
            text += f", {clips / seconds:.2f} clips/s, {left} left"
        self.tell(text)


class SearchConfig(Config):
    """Model, clips and precision of a search."""

    stage: Literal["search"] = "search"
    data: DataConfig  # as in the router's settings, which load the same clips again
    model: Path  # folder of the proxy tokenizer
    clips: int = Field(ge=0)  # training clips, rounded up to whole batches; 0: only held-out ones
    # Held-out clips, one of a video, drawn as `ClipSampler.eval_clips` does; all if None.
    held_out_clips: int | None = Field(default=None, ge=1)
    # How many assignments each batch of training clips is searched for, drawn at random; all if
    # None. Held-out clips are always searched for all.
    candidates: int | None = Field(default=None, ge=2)
    batch_size: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)
    method: Method = "tree"
    quality: tuple[Recorded, ...] = ()  # columns beside "mse", which gives PSNR
    precision: Literal["fp32", "bf16"] = "fp32"
    processes: int = Field(default=1, ge=1)  # that share the batches; changes speed only
    device: str = "auto"  # as in a training; processes of one search share it

    def decides(self) -> dict[str, Any]:
        """Settings that change a shard's numbers, beside model and clip; JSON-able."""
        data = self.data.model_dump(mode="json", exclude={"cache_dir"})
        return {"data": data} | {key: getattr(self, key) for key in DECIDING}


def run_search(
    path: Path,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    progress: SplitProgress | None = None,
) -> dict[str, Any]:
    """Search what a settings file says; a killed search goes on where it was.

    Returns:
        JSON-able: folders of both tables and their numbers of clips.
    """
    config = load_config(SearchConfig, path, overrides)
    folder = run_dir or Path("runs") / path.resolve().parent.name / path.stem
    written = [folder, folder / "train", folder / "test"]
    refuse_overwrite(written, [path, *paths_in(config)], links=False)
    return search_config(config, folder, progress)


def search_config(
    config: SearchConfig, run_dir: Path, progress: SplitProgress | None = None
) -> dict[str, Any]:
    """As `run_search`, for settings that have been read."""
    if not (config.model / "config.json").is_file():
        raise MissingFileError(f"model: no tokenizer in {config.model}: train the proxy first")
    model: VideoTokenizer = load_model(VideoTokenizer, config.model)
    candidates = model.levels.num_candidates(model.num_blocks)
    drawn_candidates(candidates, config.candidates, config.seed, 0)  # refuses too many, at once
    result: dict[str, Any] = {"candidates": config.candidates or candidates}
    place = rank_from_environment()
    ours, groups = place.rank, place.world
    splits: tuple[Split, ...] = ("train", "test") if config.clips else ("test",)
    for split in splits:
        _, num_batches, total = _batches(config, split)  # also fills the cache, once
        tell = partial(progress, split) if progress is not None else _silent
        processes = min(config.processes, -(-num_batches // groups))
        if processes == 1:
            for done in _curate(config, run_dir / split, split, ours, groups):
                tell(done if groups == 1 else _done(run_dir / split), total)
        else:
            _share(config, run_dir / split, split, processes, tell, num_batches, total)
        result[split] = {"table": str(run_dir / split), "clips": total}
    return result


def _done(folder: Path) -> int:
    """Clips in the shards that are there, whoever made them."""
    # no other names: `*.parquet` would find shards that are being written, which begin with a point
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("table-*.parquet"))


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


def _curate(
    config: SearchConfig, folder: Path, split: Split, rank: int, world: int
) -> Iterator[int]:
    """This process's batches of a split; clips done so far after each."""
    with_motion = "moving_mse" in config.quality
    measures = {name: load_perceptual(name) for name in config.quality if name != "moving_mse"}
    weights = {name: measure.checksum for name, measure in measures.items()}
    device = resolve_device(config.device)
    if with_motion:
        weights["moving_mse"] = f"{MOTION:g} {REACH}"
    model: VideoTokenizer = load_model(VideoTokenizer, config.model).to(device)
    batch, num_batches, _ = _batches(config, split)

    def moved(number: int) -> tuple[Tensor, list[str]]:
        clips, names = batch(number)
        return clips.to(device), names

    with fast_float32_matmul(device):
        yield from curate(
            model,
            moved,
            num_batches,
            folder,
            measures=measures,
            with_motion=with_motion,
            settings={**config.decides(), "quality": weights},
            method=config.method,
            candidates=config.candidates if split == "train" else None,
            seed=config.seed,
            autocast=config.precision == "bf16",
            rank=rank,
            world=world,
        )


def _part(
    config: SearchConfig,
    folder: Path,
    split: Split,
    rank: int,
    world: int,
    threads: int,
    trouble: Connection,
) -> None:
    """Target of one process; what the caller can mend is sent to the first one, which raises it."""
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        for _ in _curate(config, folder, split, rank, world):
            pass
    except (EvatokError, OSError) as error:
        trouble.send(error)
        sys.exit(1)


def _share(
    config: SearchConfig,
    folder: Path,
    split: Split,
    processes: int,
    tell: Callable[[int, int], None],
    num_batches: int,
    total: int,
) -> None:
    """Let several processes do a split; small operations gain more so than from threads.

    Raises:
        EvatokError: one of them could not do its part.
    """
    place = rank_from_environment()
    ours, groups = place.rank, place.world
    threads = max(1, torch.get_num_threads() // processes)
    context = get_context("spawn")
    troubles, ends = zip(*(context.Pipe(duplex=False) for _ in range(processes)), strict=True)
    workers = [
        context.Process(
            target=_part,
            args=(config, folder, split, ours * processes + rank, groups * processes, threads, end),
            daemon=True,
        )
        for rank, end in enumerate(ends)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=2)
            _refuse_failed(workers, troubles)
            tell(_done(folder), total)
        _refuse_failed(workers, troubles)  # one may have ended while that was told
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    ranks = range(ours * processes, (ours + 1) * processes)
    numbers = (n for n in range(num_batches) if n % (groups * processes) in ranks)
    missing = [n for n in numbers if not shard_path(folder, n).is_file()]
    if missing:
        raise EvatokError(
            f"{folder} lacks {len(missing)} shards of the search, {shard_path(folder, missing[0])} "
            "for one: run the command again"
        )


def _refuse_failed(workers: Sequence[BaseProcess], troubles: Sequence[Connection]) -> None:
    """Raise what ended a process, if one has failed."""
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if not failed:
        return
    for trouble in troubles:
        if trouble.poll():
            raise trouble.recv()
    raise EvatokError(
        f"a process of the search ended with status {failed[0]}: run the command again"
    )


def _batches(
    config: SearchConfig, split: Split
) -> tuple[Callable[[int], tuple[Tensor, list[str]]], int, int]:
    """Batch number → clips and names, how many batches, how many clips."""
    sampler = ClipSampler(config.data, split)
    if split == "train":
        num_batches = -(-config.clips // config.batch_size)
        return _training_batches(sampler, config), num_batches, num_batches * config.batch_size
    windows = sampler.eval_clips(config.held_out_clips)
    num_batches = -(-len(windows) // config.batch_size)
    return _held_out_batches(sampler, windows, config.batch_size), num_batches, len(windows)


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
