"""Runs of one process and of two whose layers are spread; see test_sharding.py.

Children are forked after torch is imported. Usage: python spread.py FOLDER OPTIMIZER
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from toy import DuelStage, LayeredModel

from training.config import TrainConfig
from training.loop import train
from training.sharding import local


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


def join(rank: int, world: int, port: int) -> None:
    """Become one of several processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["ACCELERATE_USE_CPU"] = "true"


def together(works: list[Callable[[], object]]) -> None:
    """Do things in a child each."""
    children = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException as error:
                print(f"child: {error!r}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"exit codes {codes}")


def one(folder: Path, name: str, settings: TrainConfig, break_at: int = -1) -> None:
    stage = Stage(break_at)
    try:
        model = train(stage, settings, folder / name)
    except KeyboardInterrupt:
        return
    rank = os.environ.get("RANK", "0")
    held = sum(local(parameter).numel() for parameter in stage.model.parameters())
    (folder / f"{name}-rank{rank}.json").write_text(json.dumps(held))
    save_file(model.state_dict(), folder / f"{name}-rank{rank}.safetensors")


def pair(folder: Path, name: str, settings: TrainConfig, break_at: int = -1) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        join(rank, 2, port)
        one(folder, name, settings, break_at)

    together([lambda r=rank: work(r) for rank in (0, 1)])


def main(folder: Path, optimizer: str) -> None:
    plain = config(optimizer)
    fsdp = config(optimizer, sharding="fsdp")
    together([lambda: one(folder, "one", plain)])
    pair(folder, "two", fsdp)
    if optimizer == "muon":
        return
    together([lambda: one(folder, "alone", fsdp)])  # nothing to spread
    pair(folder, "less", config(optimizer, sharding="fsdp", checkpoint_activations=True))
    pair(folder, "cut", fsdp, break_at=6)
    pair(folder, "cut", fsdp)
    # begun by two, finished by one
    pair(folder, "mixed", fsdp, break_at=6)
    together([lambda: one(folder, "mixed", plain)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    main(Path(sys.argv[1]), sys.argv[2])
