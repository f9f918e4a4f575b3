"""Cost of the router beside the encoder, at paper scale, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.router --json

Random weights: only shapes matter to the time. The encoder is timed with the mean assignment of the
paper's results (about 190 tokens a block: 256, 256, 128, 128) and with the longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.generate import seconds
from evatok.core.compute.precision import fast_float32_matmul
from evatok.core.config import read_yaml
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.router import Router, RouterConfig

CONFIGS = Path("configs/paper")


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description="The router's share of encoding.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer_config = TokenizerConfig.model_validate(
        read_yaml(CONFIGS / "tokenizer.yaml")["model"]
    )
    model = VideoTokenizer(tokenizer_config).eval()
    router = Router(RouterConfig.model_validate(read_yaml(CONFIGS / "router.yaml")["model"])).eval()
    size = tokenizer_config.size
    clips = torch.rand(options.batch, 3, tokenizer_config.num_frames, size, size) * 2 - 1
    mean = torch.tensor([[256, 256, 128, 128]]).expand(options.batch, -1)
    longest = torch.full((options.batch, 4), 512)
    works: dict[str, Callable[[], object]] = {
        "router": lambda: router.assign(clips),
        "encode_mean": lambda: model.encode(clips, mean),
        "encode_longest": lambda: model.encode(clips, longest),
        "whole_mean": lambda: model(clips, mean),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    with fast_float32_matmul(torch.device("cpu")):
        for work in works.values():
            work()  # warm up
        for _ in range(options.repeats):
            for name, work in works.items():
                times[name].append(seconds(work))
    shares = {
        f"router_to_{name}": statistics.median(
            a / b for a, b in zip(times["router"], times[name], strict=True)
        )
        for name in works
        if name != "router"
    }
    result = shares | {"batch": options.batch, "threads": torch.get_num_threads()}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
