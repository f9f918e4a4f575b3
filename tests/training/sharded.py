"""Runs of one process and of two whose layers are sharded; see test_sharding.py.

Usage: torchrun --nproc-per-node 2 sharded.py FOLDER OPTIMIZER
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from toy import DuelStage, LayeredModel

from evatok.core.config import TrainConfig
from evatok.core.processes.distributed import joined
from training.loop import train
from training.sharding import local_rows


class Stage(DuelStage):
    """Layers, an adversary, and a whole parameter that the stage writes into after steps."""

    def __init__(self, break_at: int = -1) -> None:
        super().__init__(noise=False, every=2)
        self.break_at = break_at

    def build(self, dropout: float) -> nn.Module:
        return LayeredModel(dropout)

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        super().after_step(model, step, generator)
        model.head.bias[step % 5] += 0.01  # type: ignore[index, operator]
        if step == self.break_at:
            raise KeyboardInterrupt


def config(optimizer: str, **changes: Any) -> TrainConfig:
    values = {
        "steps": 8,
        "batch_size": 8,
        "grad_accumulation": 2,
        "log_every": 1,
        "save_every": 4,
        "validate_every": 4,
        "ema_decay": 0.5,
        "optimizer": {"name": optimizer, "lr": 1e-2, "weight_decay": 0.1, "grad_clip": 0.5},
    }
    return TrainConfig.model_validate(values | changes)


def one(folder: Path, name: str, settings: TrainConfig, break_at: int = -1) -> None:
    """Train into folder/name, or until a step; what this process held and got."""
    stage = Stage(break_at)
    try:
        model = train(stage, settings, folder / name)
    except KeyboardInterrupt:
        return
    rank = os.environ.get("RANK", "0")
    held = sum(local_rows(parameter).numel() for parameter in stage.model.parameters())
    (folder / f"{name}-rank{rank}.json").write_text(json.dumps(held))
    save_file(model.state_dict(), folder / f"{name}-rank{rank}.safetensors")


def main(folder: Path, optimizer: str) -> None:
    """What two processes do."""
    fsdp = config(optimizer, sharding="fsdp")
    one(folder, "two", fsdp)
    if optimizer == "muon":
        return
    one(folder, "less", config(optimizer, sharding="fsdp", checkpoint_activations=True))
    one(folder, "cut", fsdp, break_at=6)
    one(folder, "cut", fsdp)
    one(folder, "mixed", fsdp, break_at=6)  # begun by two, finished by one


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with joined(torch.device("cpu")):
        main(Path(sys.argv[1]), sys.argv[2])
