"""Sampling speed against Transformers' Llama and against the floor that memory sets.

    python -m benchmarks.generate --json

A GPT-B of random weights, the paper's vocabulary, classifier-free guidance on (two rows a clip),
two threads, everything in one run: medians of repeated, interleaved measurements. Transformers runs
the same network (`LlamaForCausalLM.generate`, bfloat16, the same number of rows, no guidance
arithmetic). The floor reads the same bytes of weights and of filled cache once a token.

| key | meaning |
| --- | --- |
| b1x256_vs_transformers | 1 clip × 256 tokens: their time ÷ ours |
| b1x256_vs_floor | our time ÷ the floor's |
| b8x1024_vs_transformers | 8 clips × 1 024 tokens: their time ÷ ours |
| int8_vs_bf16 | 1 clip: our bfloat16 time ÷ our time with int8 weights |
| b1x256_vs_pytorch | 1 clip: the same weights stepped in PyTorch ÷ compiled steps |
| int8_b1x256_…, int8_b8x1024_… | the same with int8 weights; the floor is bfloat16's |
| refill_speedup | 64 clips of uneven lengths, 8 at work: without ÷ with refilled slots |
| refill_vs_static | the same clips eight at a time, each computed until all eight have ended |
| uneven_vs_even | seconds a token: these clips ÷ as many clips of one length |

"Without refilled slots" is the same engine eight clips at a time: one that ends frees its rows, but
the next eight begin when all have ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from evatok.hub import load
from generator.budget import BudgetConfig
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from generator.inference.engine import sample
from generator.inference.optimize import prepare_for_inference
from generator.inference.requests import Request, SamplingConfig, class_requests

LEVELS = (32, 64, 128, 256, 512)


def paper_gpt(dtype: torch.dtype, levels: tuple[int, ...] = LEVELS) -> GPT:
    """GPT-B of random weights; its head too, or every token would be equally likely."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(
        codebook_size=8192,
        levels=levels,
        num_blocks=4,
        class_names=tuple(f"class {i}" for i in range(101)),
    )
    gpt = GPT(GPTConfig(width=768, layers=12, heads=12, hidden=2048), vocabulary)
    torch.nn.init.normal_(gpt.head.weight, std=0.02)
    return gpt.eval().to(dtype)


def requests_of(gpt: GPT, plans: Sequence[tuple[int, ...]]) -> list[Request]:
    """Guided requests for clips of these lengths."""
    out = []
    for seed, lengths in enumerate(plans):
        settings = SamplingConfig(guidance=2.5, budget=BudgetConfig(lengths=lengths))
        out += class_requests(gpt.vocabulary, [seed % 101], [seed], settings)
    return out


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(
    works: dict[str, Callable[[], Any]], repeats: int, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each, measured in turn, after one call of each where they are cold."""
    for work in works.values() if warm else ():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def transformers_of(gpt: GPT) -> Any:
    """The same network in Transformers, bfloat16."""
    import tempfile
    from pathlib import Path

    from transformers import LlamaForCausalLM

    from generator.export.checkpoint import export_llama

    with tempfile.TemporaryDirectory() as folder:
        export_llama(gpt, Path(folder) / "llama")
        model: Any = LlamaForCausalLM.from_pretrained(Path(folder) / "llama", dtype=torch.bfloat16)
    return model.eval()


def their_sampling(model: Any, rows: int, tokens: int) -> Callable[[], Any]:
    """`generate` for exactly so many tokens in each of so many rows."""
    ids = torch.zeros(rows, 1, dtype=torch.int64)

    def work() -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
        )

    return work


def floor(gpt: GPT, rows: int, tokens: int) -> Callable[[], Any]:
    """Read all weights that a step multiplies with, and the filled float32 cache, once a token."""
    matrices = [p for n, p in gpt.named_parameters() if p.ndim == 2 and "embedding" not in n]
    # summed as int64, whose kernel reads at the speed of memory
    weights = torch.cat([p.detach().flatten() for p in matrices]).bfloat16().view(torch.int64)
    size = gpt.size
    cache = torch.zeros(2 * size.layers * rows * size.width * tokens, dtype=torch.float32)

    def work() -> None:
        for count in range(1, tokens + 1):
            weights.sum()
            cache[: cache.numel() // tokens * count].sum()

    return work


def nano_lengths(count: int) -> list[tuple[int, ...]]:
    """Assignments that the nano generator draws, all levels doubled."""
    gpt = load("nano").generator
    labels = [i % len(gpt.vocabulary.class_names) for i in range(count)]
    requests = class_requests(gpt.vocabulary, labels, list(range(count)), SamplingConfig())
    return [tuple(2 * k for k in row) for row in sample(gpt, requests).assignment.tolist()]


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description="Sampling speed against peers and the floor.")
    parser.add_argument("--quick", action="store_true", help="few tokens: does it run?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    plain = paper_gpt(torch.float32)
    theirs = transformers_of(plain)
    gpt, small = prepare_for_inference(plain, "bfloat16"), prepare_for_inference(plain, "int8")
    in_torch = prepare_for_inference(plain, "bfloat16", compiled=False)
    one, eight = ((32,) * 4, 128) if arguments.quick else ((64,) * 4, 256), 8
    plan, tokens = one
    long_plan = (32,) * 4 if arguments.quick else (256,) * 4
    long_tokens = sum(long_plan)
    repeats = 1 if arguments.quick else arguments.repeats

    def ours(model: GPT, plans: Sequence[tuple[int, ...]], batch: int) -> Callable[[], Any]:
        requests = requests_of(model, plans)
        return lambda: sample(model, requests, batch)

    result: dict[str, float] = {}
    with torch.inference_mode():
        single = interleaved(
            {
                "ours": ours(gpt, [plan], 1),
                "int8": ours(small, [plan], 1),
                "pytorch": ours(in_torch, [plan], 1),
                "theirs": their_sampling(theirs, 2, tokens + 4),
                "floor": floor(plain, 2, tokens + 4),
            },
            repeats,
        )
        print(single, flush=True)
        result["b1x256_vs_transformers"] = single["theirs"] / single["ours"]
        result["b1x256_vs_floor"] = single["ours"] / single["floor"]
        result["int8_b1x256_vs_transformers"] = single["theirs"] / single["int8"]
        result["int8_b1x256_vs_floor"] = single["int8"] / single["floor"]
        result["int8_vs_bf16"] = single["ours"] / single["int8"]
        result["b1x256_vs_pytorch"] = single["pytorch"] / single["ours"]
        result["b1x256_ms_a_token"] = 1000 * single["ours"] / (tokens + 4)
        many = interleaved(
            {
                "ours": ours(gpt, [long_plan] * eight, eight),
                "int8": ours(small, [long_plan] * eight, eight),
                "theirs": their_sampling(theirs, 2 * eight, long_tokens + 4),
            },
            max(1, repeats - 2),
            warm=False,
        )
        result["b8x1024_vs_transformers"] = many["theirs"] / many["ours"]
        result["int8_b8x1024_vs_transformers"] = many["theirs"] / many["int8"]
        result["b8x1024_ms_a_step"] = 1000 * many["ours"] / (long_tokens + 4)
        print(result, flush=True)
        plans = nano_lengths(8 if arguments.quick else 64)
        gpt = prepare_for_inference(paper_gpt(torch.float32, (8, 16, 32, 64, 128)), "bfloat16")
        requests = requests_of(gpt, plans)
        groups = [requests[i : i + 8] for i in range(0, len(requests), 8)]
        longest = [max(plans[i : i + 8], key=sum) for i in range(0, len(plans), 8)]
        padded = [requests_of(gpt, [plan] * 8) for plan in longest]
        even = [(16, 16, 16, 32)] * len(plans)  # near the mean of the uneven ones
        uneven = interleaved(
            {
                "with": lambda: sample(gpt, requests, 8),
                "without": lambda: [sample(gpt, group, 8) for group in groups],
                "static": lambda: [sample(gpt, group, 8) for group in padded],
                "even": ours(gpt, even, 8),
            },
            repeats,
        )
        result["refill_speedup"] = uneven["without"] / uneven["with"]
        result["refill_vs_static"] = uneven["static"] / uneven["with"]
        tokens_of = {"with": plans, "even": even}
        each = {k: uneven[k] / sum(sum(p) + 4 for p in v) for k, v in tokens_of.items()}
        result["uneven_vs_even"] = each["with"] / each["even"]
        result["uneven_ms_a_token"] = 1000 * each["with"]
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
