"""The exact prefix tree against brute force, in one run, on held-out clips.

    python -m benchmarks.search --json

Both evaluate all 625 assignments of every clip with the nano proxy tokenizer, in float32, with the
same threads, in turn for each batch. The tree has 780 blocks to compute where brute force has
2 500: 3.2 times fewer.
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
from evatok.hub import load
from evatok.workflows.search import SearchConfig
from tokenizer.search.candidates import Method, candidate_errors
from tokenizer.search.reward import psnr_of_mse, reward_stats, rewards
from video.dataset import ClipSampler

CONFIG = Path("configs/nano/search.yaml")
WEIGHTS = [round(0.4 + 0.2 * i, 1) for i in range(9)]  # w_q of the paper's curves


def clock(method: Method, model: torch.nn.Module, clips: Tensor) -> tuple[float, Tensor]:
    """Seconds, and the errors (B, M)."""
    start = time.perf_counter()
    errors = candidate_errors(model, clips, method)  # type: ignore[arg-type]
    return time.perf_counter() - start, errors


def main() -> int:
    parser = argparse.ArgumentParser(description="The exact prefix tree against brute force.")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    model = load(options.model).proxy
    sampler = ClipSampler(load_config(SearchConfig, CONFIG).data, "test")
    windows = sampler.eval_clips(options.clips, "all")
    times: dict[Method, list[float]] = {"tree": [], "brute": []}
    errors: dict[Method, list[Tensor]] = {"tree": [], "brute": []}
    with fast_float32_matmul(torch.device("cpu")):
        for number, start in enumerate(range(0, len(windows), options.batch)):
            clips, _ = sampler.load(windows[start : start + options.batch])
            if not number:
                clock("tree", model, clips[:1])  # warm up
            order: tuple[Method, ...] = ("tree", "brute") if number % 2 else ("brute", "tree")
            for method in order:
                seconds, found = clock(method, model, clips)
                times[method].append(seconds)
                errors[method].append(found)
            ratio = sum(times["brute"]) / sum(times["tree"])
            done = min(len(windows), start + options.batch)
            print(f"{done} clips: {ratio:.2f} times faster", file=sys.stderr, flush=True)
    tree, brute = (torch.cat(errors[method]) for method in ("tree", "brute"))
    lengths = model.levels.candidates(model.num_blocks).sum(1)
    standard = reward_stats(psnr_of_mse(brute), lengths)
    choices = [
        [rewards(psnr_of_mse(one), lengths, standard, w_q).argmax(1) for one in (tree, brute)]
        for w_q in WEIGHTS
    ]
    same = sum(int((a == b).sum()) for a, b in choices)
    result = {
        "speedup": statistics.median(
            b / t for b, t in zip(times["brute"], times["tree"], strict=True)
        ),
        "same_argmax": same == len(WEIGHTS) * len(tree),
        "same_argmax_share": same / (len(WEIGHTS) * len(tree)),
        "max_relative_error": float(((tree - brute).abs() / brute).max()),
        "clips": len(tree),
        "tree_seconds_per_clip": sum(times["tree"]) / len(tree),
        "brute_seconds_per_clip": sum(times["brute"]) / len(tree),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
