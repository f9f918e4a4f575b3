"""Beam search of clips of eight blocks against the best of 10 000 random assignments, in one run.

    evatok train configs/nano/proxy-long.yaml
    python -m benchmarks.beam --json

Both have the same clips, tokenizer, threads and reward; the random ones share the prefixes that
they have in common, as the exact tree does. The statistics of the reward are those of the random
assignments, over all clips.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from evatok.core.compute.precision import fast_float32_matmul
from evatok.core.config import load_config
from evatok.hub import load_model
from tokenizer.model import VideoTokenizer
from tokenizer.search.beam import beam_search
from tokenizer.search.reward import RewardStats, psnr_of_mse, reward_stats, rewards
from tokenizer.search.tree import PrefixTree
from tokenizer.training.tokenizer_stage import ProxyConfig
from video.dataset import ClipSampler

CONFIG = Path("configs/nano/proxy-long.yaml")


def random_candidates(count: int, among: int) -> Tensor:
    """(count,) int64 distinct numbers of candidates, seed 0."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(0))[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description="Beam search against random assignments.")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--random", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=25)
    parser.add_argument("--w-q", type=float, default=1.5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--config", type=Path, default=CONFIG, help="whose held-out clips are used")
    parser.add_argument("--model", type=Path, default=Path("runs/nano/proxy-long/model"))
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    model: VideoTokenizer = load_model(VideoTokenizer, options.model)
    sampler = ClipSampler(load_config(ProxyConfig, options.config).data, "test")
    windows = sampler.eval_clips(options.clips, "all")
    only = random_candidates(options.random, model.levels.num_candidates(model.num_blocks))
    lengths = model.levels.candidates(model.num_blocks)[only].sum(1)
    parts = [windows[i : i + options.batch] for i in range(0, len(windows), options.batch)]
    batches = [sampler.load(part)[0] for part in parts]
    random_times, errors = [], []
    with fast_float32_matmul(torch.device("cpu")):
        for done, clips in enumerate(batches, 1):
            start = time.perf_counter()
            errors.append(PrefixTree(model, clips, only=only).measure()["mse"][:, only])
            random_times.append(time.perf_counter() - start)
            print(f"random: {done} of {len(batches)} batches", file=sys.stderr, flush=True)
        quality = psnr_of_mse(torch.cat(errors))
        standard = reward_stats(quality, lengths)
        best = rewards(quality, lengths, standard, options.w_q).max(1).values
        beam_times, found = search(model, batches, standard, options.w_q, options.width, 1)
        greedy_times, greedy = search(model, batches, standard, options.w_q, 1, 4)
    result = {
        "at_least_as_good": float((found >= best - 1e-6).double().mean()),
        "mean_reward_beam": float(found.mean()),
        "mean_reward_best_random": float(best.mean()),
        "mean_reward_autoregressive": float(greedy.mean()),
        "autoregressive_at_least_as_good": float((greedy >= best - 1e-6).double().mean()),
        "times_faster": statistics.median(
            r / b for r, b in zip(random_times, beam_times, strict=True)
        ),
        "autoregressive_times_faster": statistics.median(
            r / g for r, g in zip(random_times, greedy_times, strict=True)
        ),
        "clips": len(windows),
        "random": options.random,
        "width": options.width,
        "w_q": options.w_q,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


def search(
    model: VideoTokenizer,
    batches: list[Tensor],
    standard: RewardStats,
    w_q: float,
    width: int,
    span: int,
) -> tuple[list[float], Tensor]:
    """Seconds a batch, and the rewards of all clips."""
    times, found = [], []
    for clips in batches:
        start = time.perf_counter()
        found.append(beam_search(model, clips, standard, w_q, width, span).reward)
        times.append(time.perf_counter() - start)
    return times, torch.cat(found)


if __name__ == "__main__":
    sys.exit(main())
