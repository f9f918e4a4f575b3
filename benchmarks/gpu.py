"""A GPU's own numbers: training steps of paper configs beside `evatok plan`'s, and sampling speed.

    python -m benchmarks.gpu steps configs/ucf101/{proxy,router,final,generator}.yaml --gpu h100
    python -m benchmarks.gpu sampling

`steps` takes optimiser steps of a config's model on random clips or tokens, with its precision,
optimiser, average and micro-batches, and without the networks that only a loss uses. `--gpus N`
takes one GPU's share of the rows of a step. Printed for each config, one JSON object a line:
seconds a step (median), peak memory in GiB, and what `evatok plan` says of both.

`sampling` compares guided sampling of a GPT-B, as in `benchmarks.generate`, with
`LlamaForCausalLM.generate` of the same network and number of rows, both in bfloat16 on the GPU:
ours step by step and as CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generate import interleaved, paper_gpt, requests_of, transformers_of
from evatok.core.compute.devices import resolve_device
from evatok.core.config import TrainConfig
from evatok.plan.estimate import GPUS, plan
from evatok.plan.untrained import model_of
from evatok.workflows.train import load_training
from generator.conditions import Condition
from generator.data.packing import PackedBatch, pack
from generator.gpt import GPT
from generator.inference.engine import sample
from generator.inference.optimize import prepare_for_inference
from tokenizer.losses.reconstruction import PerceptualConfig, tokenizer_loss
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from training.loop import Run
from training.stage import StageBase

GIB = 1024**3


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


class RandomStage(StageBase):
    """A config's model on random rows."""

    def __init__(self, config: Any, model: nn.Module, length: int) -> None:
        self.config, self.model, self.length = config, model, length

    def batch(self, step: int, rank: int, world: int) -> Any:
        """DecodeBatch of the kind that the model takes."""
        rows, model = self.config.train.batch_size, self.model
        if isinstance(model, GPT):
            ids = torch.randint(model.vocabulary.codebook_size, (rows, self.length + 1))
            return pack([row.numpy() for row in ids], [1] * rows, [Condition.CLASS] * rows)
        assert isinstance(model, VideoTokenizer | Router)
        size = model.config
        clips = torch.rand(rows, 3, size.num_frames, size.size, size.size) * 2 - 1
        if isinstance(model, Router):
            return clips, torch.randint(model.levels.num_candidates(model.num_blocks), (rows,))
        ranks = torch.randint(len(model.levels), (rows, model.num_blocks))
        return clips, model.levels.tensor[ranks]

    def split(self, batch: Any, parts: int) -> Any:
        """See `StageBase`."""
        return batch.split(parts) if isinstance(batch, PackedBatch) else super().split(batch, parts)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the stage, without frozen networks."""
        if isinstance(batch, PackedBatch):
            logits = model(batch.ids, batch.cu_seqlens, batch.target_positions).float()
            return F.cross_entropy(logits, batch.targets), {}
        if isinstance(self.model, Router):
            return F.cross_entropy(model(batch[0]).float(), batch[1]), {}
        config = self.config.loss.model_copy(update={"perceptual": PerceptualConfig()})
        return tokenizer_loss(model(*batch), batch[0], config)


def steps(path: Path, gpus: int, rows: int | None, count: int, gpu: str, device: str) -> Any:
    """Measure the steps of one config; see the head of this file."""
    place = resolve_device(device)
    config: Any = load_training(path)
    planned = plan(path, gpus, gpu)
    train: TrainConfig = config.train
    share = rows or -(-train.batch_size // gpus)
    share = -(-share // train.grad_accumulation) * train.grad_accumulation
    train = train.model_copy(
        update={"batch_size": share, "steps": count + 2, "device": device, "num_workers": 0}
    )
    config = config.model_copy(update={"train": train})
    with place:
        model = model_of(config)
    length = 1
    if isinstance(model, GPT):
        length = round(config.expect.mean_length) if config.expect else model.max_tokens
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RandomStage(config, model, length), train, Path(folder), train)
        run.trainee.prepare(lambda module: module, train.compile)
        seconds = []
        for _ in range(count + 2):
            batch = run.stage.batch(run.step, 0, 1)
            synchronize(place)
            start = time.perf_counter()
            run._optimise(batch, check=False)
            run._after_step()
            synchronize(place)
            seconds.append(time.perf_counter() - start)
            run.step += 1
    whole = planned["hours"] * 3600 / planned["steps"]
    return {
        "config": str(path),
        "rows": share,
        "seconds_a_step": statistics.median(seconds[2:]),
        "planned_seconds_a_step": whole,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if place.type == "cuda" else None,
        "planned_gib": planned["memory_gib"]["all"],
        "planned_rows": -(-planned["rows_a_step"] // gpus),
        **versions(place),
    }


def sampling(device: str, batches: tuple[int, ...], tokens: int, repeats: int) -> Any:
    """Clips at once → seconds of ours, ours with graphs, and theirs; see the head of this file."""
    place = resolve_device(device)
    plain = paper_gpt(torch.float32)
    theirs = transformers_of(plain).to(place)
    plain = plain.to(place)
    forms = {"ours": prepare_for_inference(plain, "bfloat16")}
    if place.type == "cuda":
        forms["graphs"] = prepare_for_inference(plain, "bfloat16", graphs=True)
    result: dict[str, Any] = versions(place)
    with torch.inference_mode():
        for batch in batches:
            works = {name: _ours(model, batch, tokens, place) for name, model in forms.items()} | {
                "theirs": _theirs(theirs, 2 * batch, tokens + 4, place)
            }
            result[f"clips_{batch}"] = interleaved(works, repeats)
    return result


def _ours(model: GPT, batch: int, tokens: int, device: torch.device) -> Callable[[], None]:
    requests = requests_of(model, [(tokens // 4,) * 4] * batch)

    def work() -> None:
        sample(model, requests, batch)
        synchronize(device)

    return work


def _theirs(model: Any, rows: int, tokens: int, device: torch.device) -> Callable[[], None]:
    ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    def work() -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
        )
        synchronize(device)

    return work


def versions(device: torch.device) -> dict[str, str]:
    """Card, PyTorch and CUDA."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def main() -> None:
    """Run one of both."""
    parser = argparse.ArgumentParser(description="Training steps and sampling speed of a GPU.")
    parser.add_argument("--device", default="cuda")
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("steps")
    one.add_argument("configs", type=Path, nargs="+")
    one.add_argument("--gpus", type=int, default=1, help="that share the rows of a step")
    one.add_argument("--rows", type=int, help="of a step on this GPU, instead of its share")
    one.add_argument("--steps", type=int, default=8, help="measured, after two that are not")
    one.add_argument("--gpu", choices=GPUS, default="h100", help="of the plan's figures")
    two = parts.add_parser("sampling")
    two.add_argument("--clips", type=int, nargs="+", default=[1, 8, 64], help="at once")
    two.add_argument(
        "--tokens", type=int, default=1024, help="of a clip: 4 × 32, 64, 128, 256, 512"
    )
    two.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    if a.part == "steps":
        for path in a.configs:
            print(json.dumps(steps(path, a.gpus, a.rows, a.steps, a.gpu, a.device)), flush=True)
    else:
        print(json.dumps(sampling(a.device, tuple(a.clips), a.tokens, a.repeats)))


if __name__ == "__main__":
    main()
