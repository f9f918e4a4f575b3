"""Runs the loop in processes that are really killed, or that are two; see test_processes.py.

Children that are killed are forked after torch is imported (seconds a time), before it starts a
thread. Usage: python driver.py kills|duels FOLDER, torchrun --nproc-per-node 2 driver.py two FOLDER
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import DuelStage, ToyStage

from evatok.core.config import OptimizerConfig, TrainConfig
from evatok.core.processes import distributed as processes
from evatok.core.processes.distributed import rank_from_environment
from training.loop import train
from training.optimization.optimizer import build_optimizers
from training.runs import checkpoint
from training.stage import Validation

STEPS = 60
CONFIG = TrainConfig(
    steps=STEPS,
    batch_size=8,
    grad_accumulation=2,
    seed=3,
    ema_decay=0.9,
    log_every=4,
    validate_every=14,
    save_every=7,
    optimizer=OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.01),
)


class SlowStage(ToyStage):
    """Slow enough to be killed half-way."""

    def batch(self, step: int, rank: int, world: int) -> tuple[torch.Tensor, ...]:
        time.sleep(0.004)
        return super().batch(step, rank, world)


class SlowDuel(SlowStage, DuelStage):
    """Two trainees; the second comes late and learns at every other step."""

    def __init__(self) -> None:
        super().__init__(start_step=5, every=2)


def fork(work: Callable[[], object]) -> int:
    """Start a child which does one thing and leaves; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.__stderr__)
        finally:
            os._exit(code)
    return pid


def status(pid: int) -> int:
    """Exit status of a child, negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def quietly(config: TrainConfig, run_dir: Path, stage: type[ToyStage]) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    train(stage(), config, run_dir)


def die_while_saving(run_dir: Path, call: int, stage: type[ToyStage]) -> None:
    """Train, and die at the n-th forcing to disk: between any two writes of a checkpoint."""
    real, calls = checkpoint._sync, 0

    def deadly(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            if path.is_file():  # a file that is there by half
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    checkpoint._sync = deadly
    quietly(CONFIG, run_dir, stage)


def deaths(folder: Path, stage: type[ToyStage], calls: Sequence[int]) -> dict:
    """Train whole, killed at random moments, and killed at these forcings to disk."""
    start = time.perf_counter()
    assert status(fork(lambda: quietly(CONFIG, folder / "whole", stage))) == 0
    whole = time.perf_counter() - start
    # at random moments, also before the first checkpoint
    random_deaths = 0
    for _ in range(7):
        pid = fork(lambda: quietly(CONFIG, folder / "killed", stage))
        time.sleep(random.uniform(0.0, 0.4) * whole)
        os.kill(pid, signal.SIGKILL)
        random_deaths += status(pid) == -signal.SIGKILL
    assert status(fork(lambda: quietly(CONFIG, folder / "killed", stage))) == 0
    for call in calls:
        pid = fork(lambda call=call: die_while_saving(folder / "saving", call, stage))
        assert status(pid) == -signal.SIGKILL
    assert status(fork(lambda: quietly(CONFIG, folder / "saving", stage))) == 0
    return {"random_deaths": random_deaths}


def duels(folder: Path) -> dict:
    # here a checkpoint forces eight things: two more tensor files
    return deaths(folder, SlowDuel, (4, 5, 6, 8))


def kills(folder: Path) -> dict:
    # a checkpoint forces six things: three tensor files, state.json, its folder, the parent
    told = deaths(folder, SlowStage, (1, 3, 4, 5, 6, 8))
    # batches from worker processes
    worker = CONFIG.model_copy(update={"num_workers": 1, "steps": 20})
    assert status(fork(lambda: quietly(worker, folder / "worker", SlowStage))) == 0
    alone = CONFIG.model_copy(update={"steps": 20})
    assert status(fork(lambda: quietly(alone, folder / "alone", SlowStage))) == 0
    return told


class UnevenStage(ToyStage):
    """Parts of unequal size, and processes that disagree after a step."""

    def batch(self, step: int, rank: int, world: int) -> tuple[torch.Tensor, ...]:
        whole = super().batch(step, 0, 1)
        return whole if world == 1 else tuple(t[:5] if rank == 0 else t[5:] for t in whole)

    def weight(self, batch: tuple[torch.Tensor, ...]) -> float:
        return len(batch[0])

    def after_step(self, model: torch.nn.Module, step: int, generator: torch.Generator) -> None:
        model.count += 1 + int(os.environ.get("RANK", "0"))  # type: ignore[operator]


class RankDuel(DuelStage):
    """Everything of an adversary that processes must agree on."""

    def __init__(self, noise: bool) -> None:
        super().__init__(noise=noise, start_step=1, every=2)


RANKS: dict[str, tuple[type[ToyStage], dict]] = {
    "ranks": (UnevenStage, {}),
    "duel-ranks": (RankDuel, {"grad_accumulation": 2}),
}


def together(folder: Path, what: str) -> None:
    """The same run by one process or by two; what each has in the end."""
    stage_of, changes = RANKS[what]
    settings = {"steps": 6, "batch_size": 8, "log_every": 3, "save_every": 3, "ema_decay": 0.9}
    config = TrainConfig.model_validate(settings | {"validate_every": 3} | changes)
    place = rank_from_environment()
    stage = stage_of(noise=False)
    train(stage, config, folder / what / f"world{place.world}")
    tensors = stage.model.state_dict()
    if isinstance(stage, DuelStage):
        tensors |= {f"adversary.{k}": v for k, v in stage.adversary.state_dict().items()}
    save_file(tensors, folder / what / f"world{place.world}-rank{place.rank}.safetensors")


class Slow(RankDuel):
    """The first process looks for longer than a collective may take."""

    def validate(self, model: torch.nn.Module, step: int) -> Validation:
        time.sleep(4)
        return super().validate(model, step)


def two(folder: Path) -> dict:
    processes.COLLECTIVE = timedelta(seconds=2)
    with processes.joined(torch.device("cpu")):
        RANKS["slow"] = (Slow, {"steps": 3})
        for what in RANKS:
            together(folder, what)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    build_optimizers(ToyStage().model, OptimizerConfig())  # its first use imports for seconds
    work = {"kills": kills, "duels": duels, "two": two}
    print(json.dumps(work[sys.argv[1]](Path(sys.argv[2]))))
