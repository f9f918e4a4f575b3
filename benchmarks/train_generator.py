"""A training step on packed sequences against the same clips padded to the longest, in one run.

    python -m benchmarks.train_generator --json

Both have the same network, clips, loss and optimiser-free backward pass; lengths are those of the
token shards that are given. The padded step runs one batched causal attention per layer and leaves
padding out of the loss. `speedup` is how much faster the packed step is, `padding_removed` how many
times fewer tokens it has: the best that packing can do where time is proportional to tokens.
`adaptive_vs_uniform` compares clips a second with clips of 32 tokens a block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generator import attention
from generator.attention import Sequences
from generator.data.packing import PackedBatch, Packer
from generator.data.token_set import TokenSet
from generator.gpt import GPT, GPTConfig

SIZES = {
    "nano": GPTConfig(width=256, layers=5, heads=4, hidden=592),
    "b": GPTConfig(width=768, layers=12, heads=12, hidden=2048),
}


def _batched(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """Sequences of one length as a batch: what padding is good for."""
    a, b, c = (x.unflatten(0, (len(sequences.lengths), -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(a, b, c, is_causal=True).transpose(1, 2).flatten(0, 1)


def padded(batch: PackedBatch) -> PackedBatch:
    """The same sequences, each filled up to the longest; targets at the same tokens."""
    ends = batch.cu_seqlens.tolist()
    lengths = np.diff(ends)
    longest = int(lengths.max())
    ids = torch.zeros(len(lengths), longest, dtype=batch.ids.dtype)
    for row, (start, length) in enumerate(zip(ends, lengths.tolist(), strict=False)):
        ids[row, :length] = batch.ids[start : start + length]
    owner = torch.searchsorted(batch.cu_seqlens[1:].long(), batch.target_positions, right=True)
    places = owner * longest + batch.target_positions - batch.cu_seqlens[:-1].long()[owner]
    bounds = torch.arange(0, (len(lengths) + 1) * longest, longest, dtype=torch.int32)
    return PackedBatch(ids.flatten(), bounds, places, batch.targets, batch.conditions)


def step_of(gpt: GPT, batch: PackedBatch, backend: str) -> Callable[[], float]:
    """A forward and backward pass; its loss."""

    def step() -> float:
        gpt.zero_grad(set_to_none=True)
        gpt.backend = backend
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = gpt(batch.ids, batch.cu_seqlens, batch.target_positions)
        loss = F.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        return float(loss.detach())

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description="Packed against padded training steps.")
    parser.add_argument("--tokens", type=Path, default=Path("runs/nano/tokens/train"))
    parser.add_argument("--uniform", type=Path, default=Path("runs/nano/tokens-uniform/train"))
    parser.add_argument("--model", choices=sorted(SIZES), default="nano")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    attention.BACKENDS["batched"] = _batched
    sets = {"adaptive": TokenSet(options.tokens), "uniform": TokenSet(options.uniform)}
    steps: dict[str, list[Callable[[], float]]] = {"packed": [], "padded": [], "uniform": []}
    counts: dict[str, list[int]] = {name: [] for name in steps}
    clips: dict[str, list[int]] = {name: [] for name in steps}
    for name, tokens in sets.items():
        gpt = GPT(SIZES[options.model], tokens.vocabulary, tokens.frames, tokens.text)
        torch.nn.init.normal_(gpt.head.weight, std=0.02)
        mean = float(tokens.lengths().mean())
        packer = Packer(tokens, round(options.clips * mean), seed=0)
        for number in range(options.repeats):
            batch = packer.batch(number)
            kinds = [("packed", batch, "loop"), ("padded", padded(batch), "batched")]
            if name == "uniform":
                kinds = [("uniform", batch, "loop")]
            for kind, one, backend in kinds:
                steps[kind].append(step_of(gpt, one, backend))
                counts[kind].append(len(one.ids))
                clips[kind].append(len(one.cu_seqlens) - 1)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.repeats):
        losses = {}
        for name, mine in steps.items():
            mine[number]()  # warm up this shape
            start = time.perf_counter()
            losses[name] = mine[number]()
            times[name].append(time.perf_counter() - start)
        if abs(losses["packed"] - losses["padded"]) > 0.02 * losses["padded"]:
            raise RuntimeError(f"packed and padded losses differ: {losses}")
        print(f"step {number + 1} of {options.repeats}", file=sys.stderr, flush=True)
    ratios = [b / a for a, b in zip(times["packed"], times["padded"], strict=True)]
    removed = sum(counts["padded"]) / sum(counts["packed"])
    rates = {name: sum(clips[name]) / sum(times[name]) for name in times}
    result = {
        "speedup": statistics.median(ratios),
        "padding_removed": removed,
        "share_of_padding_removed": statistics.median(ratios) / removed,
        "adaptive_vs_uniform": rates["packed"] / rates["uniform"],
        "tokens_uniform_vs_adaptive": (sum(counts["uniform"]) / sum(clips["uniform"]))
        / (sum(counts["packed"]) / sum(clips["packed"])),
        "model": options.model,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
