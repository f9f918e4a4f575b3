"""One step of a settings file's training in a process of its own, whose peak memory is told.

Every checkpoint would be 2 GB: the loop runs, its save does not. A router's table and a generator's
shards would be made up anyway: their models take the step.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import training.loop
from evatok.core.compute.precision import bfloat16_autocast, fast_float32_matmul
from evatok.plan.untrained import model_of
from evatok.workflows.train import STAGES, load_training
from tokenizer.router import Router
from training.optimization.optimizer import build_optimizers


def tokenizer_step(config: Any, folder: Path) -> dict[str, Any]:
    """A step of the loop: every module learns, and the log has its terms."""
    stage: Any = STAGES[config.stage].build(config)
    sides = [stage.model] + ([] if stage.adversary is None else [stage.adversary])
    before = [[p.detach().clone() for p in side.parameters()] for side in sides]
    training.loop.checkpoint.save = lambda *args, **kwargs: None
    start = time.perf_counter()
    training.loop.train(stage, config.train, folder)
    seconds = time.perf_counter() - start
    for side, old in zip(sides, before, strict=True):
        pairs = zip(old, side.parameters(), strict=True)
        changed = sum(not torch.equal(a, b) for a, b in pairs)
        # the last projections of layers start at 0: in the first step nothing reaches those before
        assert changed > len(old) // 4, f"{changed} of {len(old)} parameters of {type(side)}"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    terms = next(row for row in log if row["kind"] == "train")
    return {"seconds": seconds, "terms": sorted(terms)}


def other_step(config: Any) -> dict[str, Any]:
    """A step of a router or a generator on random rows."""
    torch.manual_seed(0)
    model: Any = model_of(config).train()
    optimizers = build_optimizers(model, config.train.optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    start = time.perf_counter()
    with fast_float32_matmul(torch.device("cpu")), bfloat16_autocast("cpu"):
        if isinstance(model, Router):
            clips = torch.rand(1, 3, 16, 128, 128) * 2 - 1
            loss = F.cross_entropy(model(clips).float(), torch.tensor([7]))
        else:
            length = round(config.expect.mean_length)
            first = model.frames.num_tokens if model.frames and config.frame_share == 1 else 1
            ids = torch.randint(model.vocabulary.codebook_size, (length,))
            bounds = torch.tensor([0, length], dtype=torch.int32)
            logits = model(ids, bounds, torch.arange(first - 1, length - 1))
            loss = F.cross_entropy(logits.float(), ids[first:])
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    seconds = time.perf_counter() - start
    assert torch.isfinite(loss)
    pairs = zip(before, model.parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > len(before) // 2
    return {"seconds": seconds, "terms": ["loss"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, *more = sys.argv[1:]
    if more:
        result = tokenizer_step(load_training(Path(path), more[1:]), Path(more[0]))
    else:
        result = other_step(load_training(Path(path)))
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))
