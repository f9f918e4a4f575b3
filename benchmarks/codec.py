"""Encode + decode of one 16 × 128 × 128 clip: the paper-size tokenizer beside a plain transformer.

Ours spends 768 tokens (512 + 128 + 64 + 64). The other has the shape of LARP's tokenizer (Wang et
al., 2024): 12 + 12 bidirectional layers, 768 wide, 12 heads, over 1 024 patches and 1 024 queries
at once. Both have random weights: time does not depend on them. Runs alternate, medians count.

    python -m benchmarks.codec --json

Shape letters: B batch, N patches, Q queries, D width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from evatok.core.compute.precision import fast_float32_matmul
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.quantizer import VectorQuantizer

ASSIGNMENT = (512, 128, 64, 64)


class PlainLayer(nn.Module):
    """Pre-norm self-attention over everything, then an MLP: 12 · D² weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + Q, D) → the same shape."""
        qkv = rearrange(
            self.qkv(self.norm_attention(x)), "b n (k h d) -> k b h n d", k=3, h=self.heads
        )
        mixed = F.scaled_dot_product_attention(*qkv)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


class PlainTokenizer(nn.Module):
    """Patches and queries in one bidirectional sequence, twice."""

    def __init__(self, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.patch_in = nn.Linear(768, width)
        self.positions = nn.Parameter(torch.randn(1024, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(1024, width) * 0.02)
        self.patch_queries = nn.Parameter(torch.randn(1024, width) * 0.02)
        self.encoder = nn.Sequential(*(PlainLayer(width, heads) for _ in range(layers)))
        self.code_in = nn.Linear(width, 16)
        self.quantizer = VectorQuantizer(8192, 16, 0.0)
        self.code_out = nn.Linear(16, width)
        self.decoder = nn.Sequential(*(PlainLayer(width, heads) for _ in range(layers)))
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, 768)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, 3, 16, 128, 128) → the same shape."""
        patches = rearrange(
            clips, "b c (t f) (h r) (w s) -> b (t h w) (f r s c)", f=4, r=8, s=8
        )  # (B, N, 768)
        x = self.patch_in(patches) + self.positions
        x = torch.cat([x, self.queries.expand(len(x), -1, -1)], 1)  # (B, N + Q, D)
        z = self.code_in(self.encoder(x)[:, 1024:]).flatten(0, 1)
        codes = self.quantizer.lookup(self.quantizer.nearest(F.normalize(z.float(), dim=-1)))
        latents = self.code_out(codes).unflatten(0, (len(clips), -1))
        x = torch.cat([latents, self.patch_queries.expand(len(latents), -1, -1)], 1)
        x = self.head(self.norm_out(self.decoder(x)[:, 1024:]))
        return rearrange(
            x, "b (t h w) (f r s c) -> b c (t f) (h r) (w s)", t=4, h=16, f=4, r=8, s=8
        )


def paper_tokenizer() -> VideoTokenizer:
    """The tokenizer of configs/paper/tokenizer.yaml."""
    return VideoTokenizer(
        TokenizerConfig(
            levels=(32, 64, 128, 256, 512),
            encoder=QFormerConfig(width=512, layers=6, heads=8),
            decoder=QFormerConfig(width=768, layers=12, heads=12),
            token_positions=True,
        )
    )


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(device: torch.device, repeats: int) -> dict[str, object]:
    """Medians of alternating runs.

    Returns:
        JSON-able: ms of both in fp32 and bf16, and how many times faster ours is.
    """
    torch.manual_seed(0)
    ours, plain = paper_tokenizer().eval().to(device), PlainTokenizer().eval().to(device)
    clips = torch.rand(1, 3, 16, 128, 128, device=device) * 2 - 1
    assignment = torch.tensor([ASSIGNMENT])  # on the CPU, where groups are made
    calls = {
        "evatok": lambda: ours.decode(ours.encode(clips, assignment.to(device))),
        "plain": lambda: plain(clips),
    }
    result: dict[str, object] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "tokens": sum(ASSIGNMENT),
        "repeats": repeats,
    }
    with fast_float32_matmul(device):
        for name in ("fp32", "bf16"):
            times: dict[str, list[float]] = {key: [] for key in calls}
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                for number in range(repeats + 1):
                    for key, call in calls.items():
                        passed = seconds(call, device)
                        if number:  # the first one warms up
                            times[key].append(1000 * passed)
            medians = {key: statistics.median(values) for key, values in times.items()}
            result |= {f"{key}_ms_{name}": round(value, 2) for key, value in medians.items()}
            result[f"speedup_{name}"] = round(medians["plain"] / medians["evatok"], 3)
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each")
    parser.add_argument("--json", action="store_true", help="one JSON object, the last line")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    result = measure(torch.device(arguments.device), arguments.repeats)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
