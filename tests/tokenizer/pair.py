"""Toy tokenizer stages, trained by the test itself or by two processes; see test_processes.py.

Usage: torchrun --nproc-per-node 2 pair.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from frozen import ToyEncoder  # the script's own folder

import tokenizer.losses.semantic_discriminator
from evatok.core.processes.distributed import joined
from tokenizer.training.tokenizer_stage import ProxyConfig, TokenizerStage
from training.loop import train
from video.writing import write_video

SEMANTIC = {"kind": "semantic", "layers": [1, 3], "width": 8, "groups": 2, "kernel": 5}
PATCH = {"kind": "patch", "width": 24, "layers": 1, "heads": 2}


def write_videos(folder: Path) -> None:
    """Five short ones of noise."""
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        frames = torch.randint(0, 256, (12, 16, 16, 3), generator=generator, dtype=torch.uint8)
        write_video(folder / "videos" / f"{number}.mp4", frames, crf=8)


def config(folder: Path, discriminator: dict[str, Any], sharding: str) -> ProxyConfig:
    """Everything that processes must agree on: entropy, LeCAM, an adaptive weight, dead codes."""
    former = {"width": 24, "layers": 2, "heads": 2}
    return ProxyConfig.model_validate(
        {
            "data": {
                "sources": [{"kind": "folder", "root": folder / "videos"}],
                "num_frames": 8,
                "size": 16,
                "cache_dir": folder / "cache",
            },
            "model": {
                "levels": [1, 4],
                "num_frames": 8,
                "size": 16,
                "encoder": former,
                "decoder": former,
                "codebook_size": 32,
            },
            "codebook": {"usage_decay": 0.5, "restart_every": 2, "restart_below": 0.5},
            "adversarial": {
                "weight": 0.3,
                "lecam": 0.1,
                "lecam_decay": 0.5,
                "start_step": 1,
                "every": 2,
                "discriminator": discriminator,
                "optimizer": {"lr": 1e-3},
            },
            "train": {
                "steps": 6,
                "batch_size": 8,
                "grad_accumulation": 2,
                "log_every": 1,
                "validate_every": 0,
                "save_every": 0,
                "sharding": sharding,
            },
        }
    )


def run(
    folder: Path, name: str, discriminator: dict[str, Any] = PATCH, sharding: str = "none"
) -> None:
    """Train into folder/name."""
    settings = config(folder, discriminator, sharding)
    encoders, tokenizer.losses.semantic_discriminator.load_encoder = (
        tokenizer.losses.semantic_discriminator.load_encoder,
        lambda config: ToyEncoder((2, 3, 3)),
    )
    train(TokenizerStage(settings), settings.train, folder / name, settings)
    tokenizer.losses.semantic_discriminator.load_encoder = encoders


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    with joined(torch.device("cpu")):
        run(root, "two")
        run(root, "sharded", sharding="fsdp")
        run(root, "semantic-two", SEMANTIC)
