"""Upper bounds of a patch layout before any training: rank of the pixel head, bits for each patch.

    python -m benchmarks.ceiling data/procgen

The tokenizer's pixel head is linear, so a decoder of width W draws each patch in W dimensions: the
best such ones are the principal components. And a codebook of patches alone (k-means, no
context) tells what so many tokens of 10 bits buy. Held-out clips; PSNR and moving PSNR in dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from evaluation.metrics.quality import mean_where_moving, moving_psnr, psnr
from video.dataset import ClipSampler, DataConfig, SourceConfig

PATCHES = ((4, 8, 8), (2, 8, 8), (1, 8, 8), (4, 4, 4))
RANKS = (64, 128, 192, 256, 384)
CODES, KEPT, ROUNDS = 1024, 96, 6  # codebook; components that k-means looks at; its rounds


def score(name: str, rows: Tensor, clips: Tensor, patch: tuple[int, int, int]) -> None:
    """Print a line for patches (N, voxels) that stand for clips (B, 3, F, H, W)."""
    (p, q, r), (_, _, frames, height, width) = patch, clips.shape
    made = rearrange(
        rows, "(b t h w) (c p q r) -> b c (t p) (h q) (w r)",
        t=frames // p, h=height // q, w=width // r, p=p, q=q, r=r, c=3,
    ).clamp(-1, 1)  # fmt: skip
    moved = mean_where_moving(moving_psnr(made, clips))
    print(f"{patch} {name}: {float(psnr(made, clips).mean()):.2f} {moved:.2f}", flush=True)


def nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """(N,) the code next to each row."""
    half = codes.square().sum(1) / 2
    return torch.cat([(part @ codes.T - half).argmax(1) for part in rows.split(4000)])


def measure(train: Tensor, test: Tensor, patch: tuple[int, int, int], samples: int) -> None:
    """Print all ranks and the codebook of one shape of patches."""
    p, q, r = patch
    form = "b c (t p) (h q) (w r) -> (b t h w) (c p q r)"
    known, asked = (rearrange(x, form, p=p, q=q, r=r) for x in (train, test))
    mean = known.mean(0)
    known, asked = known - mean, asked - mean
    axes = torch.linalg.eigh(known.T @ known).eigenvectors.flip(1)
    for rank in RANKS:
        if rank < len(axes):
            some = axes[:, :rank]
            score(f"rank {rank}", asked @ some @ some.T + mean, test, patch)
    some = axes[:, :KEPT]
    generator = torch.Generator().manual_seed(0)
    rows = (known @ some)[torch.randperm(len(known), generator=generator)[:samples]]
    codes = rows[:CODES].clone()
    for _ in range(ROUNDS):
        owner = nearest(rows, codes)
        count = torch.bincount(owner, minlength=len(codes))[:, None]
        sums = torch.zeros_like(codes).index_add_(0, owner, rows)
        codes = torch.where(count > 0, sums / count.clamp_min(1), codes)
    drawn = codes[nearest(asked @ some, codes)] @ some.T + mean
    tokens = 4 * 64 * 64 // (p * q * r)
    score(f"{CODES} codes, {tokens} tokens for 4 frames of 64 × 64", drawn, test, patch)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a set in the layout of UCF-101")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--train", type=int, default=320, help="clips")
    parser.add_argument("--test", type=int, default=96, help="clips")
    parser.add_argument("--samples", type=int, default=15_000, help="patches for k-means")
    words = parser.parse_args()
    data = DataConfig(
        sources=(SourceConfig(kind="ucf101", root=words.root),), cache_dir=words.cache
    )
    train, _, _ = ClipSampler(data, "train").batch(0, words.train, 0)
    test, _, _ = ClipSampler(data, "test").batch(0, words.test, 0)
    for patch in PATCHES:
        measure(train, test, patch, words.samples)


if __name__ == "__main__":
    main()
