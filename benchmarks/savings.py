"""Tokens that the router saves at the quality of uniform-32, with their spread over seeds.

    python -m benchmarks.savings --json

For each seed: other held-out windows; the PSNR of the proxy at 32 tokens a block; the curve of the
final tokenizer under `router:w_q`; where it meets that PSNR, linearly between its points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from evatok.core.config import load_config
from evatok.hub import load
from evatok.measure.clip_sets import clip_set, reconstruct_set
from evatok.workflows.search import SearchConfig
from tokenizer.search.assigners import make_assigner
from video.dataset import ClipSampler

CONFIG = Path("configs/nano/search.yaml")
WEIGHTS = (1.3, 1.45, 1.6, 1.7, 1.8, 1.9, 2.0)


def saving(points: list[tuple[float, float]], psnr: float, tokens: float) -> float | None:
    """Share of the tokens that is saved where a curve of (tokens, PSNR) meets a PSNR.

    Below the curve its first point counts; None where no point is as good.
    """
    points = sorted(points)
    best = np.maximum.accumulate([quality for _, quality in points])  # cheapest that is as good
    if best[-1] < psnr:
        return None
    return 1 - float(np.interp(psnr, best, [count for count, _ in points])) / tokens


def main() -> int:
    parser = argparse.ArgumentParser(description="Tokens saved at the quality of uniform-32.")
    parser.add_argument("--clips", type=int, default=360, help="of each set and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--level", type=int, default=32)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    models = load(options.model)
    sampler = ClipSampler(load_config(SearchConfig, CONFIG).data, "test")
    uniform = make_assigner(f"uniform:{options.level}", models.proxy)
    result: dict[str, Any] = {"level": options.level, "clips": options.clips, "w_q": WEIGHTS}
    for number, source in enumerate(sampler.sources):
        name, rows = source.root.name, []
        for seed in range(options.seeds):
            windows = sampler.eval_clips(options.clips, "all", number, seed)
            real = clip_set(sampler, windows, name)
            base = reconstruct_set(models.proxy, uniform, real)
            psnr, tokens = float(base.psnr.mean()), options.level * models.proxy.num_blocks
            points = []
            for w_q in WEIGHTS:
                chosen = make_assigner(f"router:{w_q}", models.final, models.conditioned_router)
                done = reconstruct_set(models.final, chosen, real)
                mean_tokens = float(done.tokens.lengths.double().mean())
                points.append((mean_tokens, float(done.psnr.mean())))
            rows.append(
                {"seed": seed, "psnr": psnr, "saving": saving(points, psnr, tokens),
                 "curve": points}
            )  # fmt: skip
            print(f"{name}, seed {seed}: {rows[-1]}", file=sys.stderr, flush=True)
        found = [row["saving"] for row in rows if row["saving"] is not None]
        result[name] = {
            "savings": [row["saving"] for row in rows],
            "mean": statistics.mean(found) if found else None,
            "std": statistics.stdev(found) if len(found) > 1 else None,
            "psnr": [row["psnr"] for row in rows],
            "curves": [row["curve"] for row in rows],  # (tokens, PSNR) at each w_q
        }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
