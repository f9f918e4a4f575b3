"""How long the training of own videos takes, guessed before it begins.

One step of the tokenizer is timed here; the operations of the other stages are counted and done at
the speed that this step shows. Reading videos and the report are left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from evatok.plan.flops import clip_flops, router_flops, search_flops
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from video.clips import sides

ROWS = 4  # of the timed step


def time_of(settings: Mapping[str, Any], proxy: Any, device: torch.device) -> dict[str, float]:
    """Seconds of every stage that trains or searches.

    Args:
        settings: of the stages to be done, by name.
        proxy: settings of the tokenizer that is timed.
        device: where it runs.
    """
    if not {"proxy", "search", "router", "final"} & settings.keys():
        return {}
    model = VideoTokenizer(proxy.model).to(device)
    candidates = model.levels.candidates(model.num_blocks)
    middle = candidates[len(candidates) // 2]
    shape = (ROWS, 3, proxy.model.num_frames, *sides(proxy.model.size))
    clips = torch.rand(shape, device=device) * 2 - 1
    spent = 0.0
    for _ in range(2):  # the first is slower: memory is asked for
        start = time.perf_counter()
        made = model(clips, middle.to(device).expand(ROWS, -1))
        (made.clips - clips).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    rate = ROWS * _trained(clip_flops(model, middle.tolist())) / spent  # operations a second
    each = sum(_trained(clip_flops(model, row)) for row in candidates.tolist()) / len(candidates)
    work = {}
    for name, config in settings.items():
        if name in ("proxy", "final"):
            work[name] = config.train.steps * config.train.batch_size * each
        elif name == "search":
            work[name] = (config.clips + (config.held_out_clips or 0)) * search_flops(model)
        elif name == "router":
            with torch.device("meta"):
                costs = router_flops(Router(config.model))
            work[name] = config.train.steps * config.train.batch_size * _trained(costs)
    return {name: value / rate for name, value in work.items()}


def _trained(costs: Mapping[str, int]) -> int:
    """Operations of a training step's row."""
    return sum(value for name, value in costs.items() if name.startswith("train/"))
