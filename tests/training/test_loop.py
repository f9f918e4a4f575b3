"""The loop in one process: repeatable, resumable, exact about accumulation, strict about input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evatok.core.compute.seeds import mixed_seed
from evatok.core.config import Config, ConfigError, OptimizerConfig, ScheduleConfig, TrainConfig
from tests.training.same import assert_same
from training.loop import Stage, StageBase, TrainingError, train
from training.runs import checkpoint
from training.runs.checkpoint import CheckpointError
from training.runs.run_folder import run_lock


def settings(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 10, "batch_size": 8, "log_every": 2, "save_every": 5}
    return TrainConfig.model_validate(values | {"validate_every": 5} | changes)


def rows(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_toy_is_a_stage(toy_stage: Any) -> None:
    stage: Stage = toy_stage()
    assert isinstance(stage, StageBase)


def test_learns_and_leaves_its_files(tmp_path: Path, toy_stage: Any) -> None:
    stage = toy_stage(noise=False)
    always = stage.batch(0, 0, 1)
    stage.batch = lambda step, rank, world: always
    model = train(stage, settings(steps=150, optimizer={"lr": 0.01}), tmp_path / "run")
    terms = rows(tmp_path / "run", "train")
    assert terms[-1]["loss"] < 0.05 * terms[0]["loss"]
    assert terms[-1]["loss"] == pytest.approx(terms[-1]["mse"] + 0.1 * terms[-1]["l1"])
    assert [row["step"] for row in terms] == list(range(2, 151, 2))
    assert rows(tmp_path / "run", "validation")[-1]["count"] == 150
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "log.jsonl", "tensorboard", "images", "checkpoints", ".lock"}
    assert (tmp_path / "run" / "images" / "a-b-picture-00000150.png").is_file()
    assert not model.training and model is stage.model


def test_same_seed_same_result(tmp_path: Path, toy_stage: Any) -> None:
    first = train(toy_stage(), settings(), tmp_path / "a")
    torch.rand(3)  # the global generator does not matter
    assert_same(train(toy_stage(), settings(), tmp_path / "b"), first)
    other = train(toy_stage(), settings(seed=1), tmp_path / "c")
    assert not torch.equal(other.state_dict()["head.weight"], first.state_dict()["head.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_five_and_five_are_ten(tmp_path: Path, toy_stage: Any, optimizer: Any) -> None:
    """Interrupted by an exception at step 7, so that two steps must be taken again."""
    config = settings(ema_decay=0.9, log_every=3, optimizer=OptimizerConfig(name=optimizer))
    whole = train(toy_stage(), config, tmp_path / "whole")
    with pytest.raises(TrainingError):
        train(toy_stage(nan_at=7), config, tmp_path / "cut")
    assert_same(train(toy_stage(), config, tmp_path / "cut"), whole)
    timed = {"seconds", "steps_per_second"}
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows(tmp_path / run, "train")]
        for run in ("cut", "whole")
    )
    assert ours == theirs


def test_finished_run_returns_at_once(tmp_path: Path, toy_stage: Any) -> None:
    config = settings(ema_decay=0.9)
    first = train(toy_stage(), config, tmp_path)
    stage = toy_stage()
    stage.batch = None  # would fail if it were asked for a batch
    again = train(stage, config, tmp_path)
    assert_same(again, first)
    assert not again.training and again is not stage.model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_is_the_full_batch(tmp_path: Path, toy_stage: Any, optimizer: Any) -> None:
    def run(parts: int) -> nn.Module:
        config = settings(grad_accumulation=parts, optimizer=OptimizerConfig(name=optimizer))
        return train(toy_stage(noise=False), config, tmp_path / str(parts))

    # Muon's update is computed in bf16: the last bits of a gradient can flip one of its roundings
    tolerance = 1e-6 if optimizer == "adamw" else 1e-4
    whole = run(1)
    assert_same(run(2), whole, tolerance)
    assert_same(run(4), whole, tolerance)
    first, second = (rows(tmp_path / run, "train") for run in ("1", "4"))
    for name in ("loss", "mse", "l1", "grad_norm"):
        assert [r[name] for r in first] == pytest.approx([r[name] for r in second], abs=1e-5)


def test_uneven_parts_are_weighted(tmp_path: Path, toy_stage: Any) -> None:
    class Uneven(toy_stage):
        def split(self, batch: Any, parts: int) -> list[Any]:
            return [tuple(t[:5] for t in batch), tuple(t[5:] for t in batch)]

        def weight(self, batch: Any) -> float:
            return len(batch[0])

    whole = train(toy_stage(noise=False), settings(), tmp_path / "a")
    parts = train(Uneven(noise=False), settings(grad_accumulation=2), tmp_path / "b")
    assert_same(parts, whole, 1e-6)


def test_average_follows_the_formula(tmp_path: Path, toy_stage: Any) -> None:
    history: list[dict[str, Tensor]] = []

    class Watched(toy_stage):
        def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
            super().after_step(model, step, generator)
            history.append({n: p.detach().clone() for n, p in model.named_parameters()})

    stage = Watched()
    average = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
    model = train(stage, settings(ema_decay=0.6), tmp_path)
    for step, weights in enumerate(history, start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        average = {n: decay * a + (1 - decay) * weights[n] for n, a in average.items()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name])
    assert model.get_buffer("count") == 10  # buffers are not averaged


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_keeps_float32_weights(
    tmp_path: Path, toy_stage: Any, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """And computes in float32 where the processor has no bfloat16 products."""
    monkeypatch.setattr("evatok.core.compute.precision.has_bfloat16", lambda _: fast)
    seen: list[torch.dtype] = []

    class Watched(toy_stage):
        def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Any:
            seen.append(model.get_submodule("hidden")(batch[0]).dtype)
            return super().loss(model, batch, generator)

    model = train(Watched(), settings(precision="bf16", ema_decay=0.9), tmp_path)
    assert set(seen) == {torch.bfloat16 if fast else torch.float32}
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000010")
    for tensors in (saved.model, saved.ema, saved.optimizer, model.state_dict()):
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_schedule_reaches_the_log(tmp_path: Path, toy_stage: Any) -> None:
    schedule = ScheduleConfig(name="wsd", decay_fraction=0.4)
    train(toy_stage(), settings(schedule=schedule, optimizer={"lr": 0.01}), tmp_path)
    rates = [row["lr"] for row in rows(tmp_path, "train")]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.0075, 0.0025])


def test_not_finite_stops_before_the_weights(tmp_path: Path, toy_stage: Any) -> None:
    stage = toy_stage(nan_at=7)
    with pytest.raises(TrainingError) as caught:
        train(stage, settings(), tmp_path)
    message = str(caught.value)
    assert re.search(r"not finite at step 8: .*loss.*step-00000005.*train\.optimizer\.lr", message)
    assert all(word in message for word in ("mse", "l1", "grad_norm"))
    assert all(parameter.isfinite().all() for parameter in stage.model.parameters())


class Source(Config):
    workers: int = 2
    cache_dir: str = "cache"
    size: int = 64


class Whole(Config):
    train: TrainConfig
    width: int = 4
    data: Source = Source()


def test_other_settings_are_refused(tmp_path: Path, toy_stage: Any) -> None:
    def go_on(width: int = 4, data: Source | None = None, **changes: Any) -> None:
        config = Whole(train=settings(**changes), width=width, data=data or Source())
        train(toy_stage(), config.train, tmp_path, config)

    go_on()
    with pytest.raises(ConfigError) as caught:
        go_on(width=5, seed=1, optimizer={"lr": 1.0})
    message = str(caught.value)
    for expected in ("width (was 4, now 5)", "train.seed (was 0, now 1)", "train.optimizer.lr"):
        assert expected in message
    with pytest.raises(ConfigError, match=r"already at step 10, beyond train\.steps 6"):
        go_on(steps=6)
    with pytest.raises(ConfigError, match=r"planned for train\.steps 10, now 6: give 10 or more"):
        shutil.rmtree(tmp_path / "checkpoints" / "step-00000010")
        go_on(steps=6)
    with pytest.raises(ConfigError, match=r"other settings: data\.size \(was 64, now 32\)"):
        go_on(data=Source(size=32, workers=1))
    moved = Source(workers=1, cache_dir="elsewhere")
    go_on(steps=12, log_every=1, save_every=0, validate_every=0, num_workers=0, data=moved)
    assert rows(tmp_path, "train")[-1]["step"] == 12


def test_weights_that_do_not_fit(tmp_path: Path, toy_stage: Any) -> None:
    train(toy_stage(), settings(), tmp_path)
    stage = toy_stage()
    stage.model.head = nn.Linear(8, 6)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*head\.weight"):
        train(stage, settings(), tmp_path)


def test_one_process_in_a_folder(tmp_path: Path) -> None:
    # a record lock does not exclude its own process: another one must hold it
    command = [sys.executable, Path(__file__).with_name("hold_lock.py"), tmp_path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="another process"), run_lock(tmp_path):
            pass
    with run_lock(tmp_path):
        pass


def test_reserved_name_and_short_batches(tmp_path: Path, toy_stage: Any) -> None:
    class Named(toy_stage):
        def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Any:
            loss, _ = super().loss(model, batch, generator)
            return loss, {"loss": loss}

    with pytest.raises(ValueError, match='logs "loss"'):
        train(Named(), settings(), tmp_path / "a")
    with pytest.raises(ValueError, match="too few rows for 8 parts"):
        train(toy_stage(rows=4), settings(grad_accumulation=8), tmp_path / "b")


def test_seeds_are_unrelated() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(8) for b in range(8) for c in range(-1, 7)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)
