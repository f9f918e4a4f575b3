"""A second trainee in the loop: in its turn, apart from the first, in checkpoints and logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evatok.core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from tests.training.same import assert_same
from training.loop import Adversarial, TrainingError, train
from training.runs import checkpoint
from training.runs.checkpoint import CheckpointError


def settings(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 10, "batch_size": 8, "log_every": 1, "save_every": 5}
    return TrainConfig.model_validate(values | {"validate_every": 0} | changes)


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_toy_is_adversarial(duel_stage: Any, toy_stage: Any) -> None:
    stage: Adversarial = duel_stage()
    assert isinstance(stage, Adversarial) and not isinstance(toy_stage(), Adversarial)


def test_learning_does_not_touch_the_model(tmp_path: Path, duel_stage: Any, toy_stage: Any) -> None:
    """A judgement of no weight leaves the model where it would be alone, to the bit."""
    stage = duel_stage(noise=False, share=0.0)
    before = weights(stage.adversary)
    assert_same(
        train(stage, settings(), tmp_path / "two"),
        train(toy_stage(noise=False), settings(), tmp_path / "one"),
    )
    changed = [not torch.equal(before[n], v) for n, v in weights(stage.adversary).items()]
    assert all(changed)


def test_judging_does_not_touch_the_adversary(tmp_path: Path, duel_stage: Any) -> None:
    """It learns at step 1 only; nine judgements later it is the same, and has no gradient."""
    stage = duel_stage(every=100)
    history: list[dict[str, Tensor]] = []
    after_step = stage.after_step

    def watch(*args: Any) -> None:
        after_step(*args)
        history.append(weights(stage.adversary))
        assert all(p.grad is None and p.requires_grad for p in stage.adversary.parameters())
        assert stage.adversary.training

    stage.after_step = watch
    train(stage, settings(), tmp_path)
    assert all(torch.equal(value, history[-1][name]) for name, value in history[0].items())


def test_model_learns_from_the_judgement(tmp_path: Path, duel_stage: Any) -> None:
    weak, strong = (
        train(duel_stage(noise=False, share=share), settings(), tmp_path / str(share))
        for share in (0.1, 0.9)
    )
    assert not torch.equal(weak.state_dict()["head.weight"], strong.state_dict()["head.weight"])


def test_turns(tmp_path: Path, duel_stage: Any) -> None:
    """Nothing of it before its first step; then its turn comes at every third."""
    stage = duel_stage(start_step=4, every=3)
    learns: list[int] = []
    before, after_step = weights(stage.adversary)["layers.0.weight"], stage.after_step

    def watch(model: nn.Module, step: int, generator: torch.Generator) -> None:
        nonlocal before
        after_step(model, step, generator)
        now = weights(stage.adversary)["layers.0.weight"]
        if not torch.equal(now, before):
            learns.append(step)
        before = now

    stage.after_step = watch
    train(stage, settings(), tmp_path)
    assert learns == [5, 8]
    names = [row.keys() for row in rows(tmp_path)]
    assert ["fooled" in row for row in names] == [False] * 4 + [True] * 6
    for name in ("adversary_loss", "adversary_grad_norm", "drift"):
        assert [name in row for row in names] == [step in learns for step in range(1, 11)]


def test_a_run_too_short_to_meet_it(tmp_path: Path, duel_stage: Any, toy_stage: Any) -> None:
    late = train(duel_stage(start_step=50), settings(), tmp_path / "late")
    assert_same(late, train(toy_stage(), settings(), tmp_path / "alone"))


def test_none_is_none(tmp_path: Path, duel_stage: Any, toy_stage: Any) -> None:
    stage = duel_stage()
    stage.adversary = None
    stage.after_step = toy_stage.after_step.__get__(stage)
    alone = train(toy_stage(), settings(), tmp_path / "alone")
    assert_same(train(stage, settings(), tmp_path / "none"), alone)
    files = {path.name for path in (tmp_path / "none" / "checkpoints").rglob("*.safetensors")}
    assert files == {"model.safetensors", "optimizer.safetensors"}
    assert not any(name.startswith("adversary") for row in rows(tmp_path / "none") for name in row)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_five_and_five_are_ten(tmp_path: Path, duel_stage: Any, optimizer: Any) -> None:
    """Every bit of the adversary comes back: weights, buffer, moments, rate, place in turns."""
    game = {
        "start_step": 2,
        "every": 2,
        "optimizer": OptimizerConfig(name=optimizer, lr=1e-2),
        "schedule": ScheduleConfig(warmup_steps=3),
    }
    config = settings(ema_decay=0.9, grad_accumulation=2, log_every=3)
    stage = duel_stage(**game)
    whole = train(stage, config, tmp_path / "whole")
    with pytest.raises(TrainingError):
        train(duel_stage(nan_at=7, **game), config, tmp_path / "cut")
    again = duel_stage(**game)
    assert_same(train(again, config, tmp_path / "cut"), whole)
    assert_same(again.adversary, stage.adversary)
    timed = {"seconds", "steps_per_second"}
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows(tmp_path / run)]
        for run in ("cut", "whole")
    )
    assert ours == theirs


def test_accumulation_is_the_full_batch(tmp_path: Path, duel_stage: Any) -> None:
    stages = [duel_stage(noise=False) for _ in range(3)]
    models = [
        train(stage, settings(grad_accumulation=parts), tmp_path / str(parts))
        for stage, parts in zip(stages, (1, 2, 4), strict=True)
    ]
    for stage, model in zip(stages[1:], models[1:], strict=True):
        assert_same(model, models[0], 1e-6)
        assert_same(stage.adversary, stages[0].adversary, 1e-6)


def test_rate_and_clipping_are_its_own(tmp_path: Path, duel_stage: Any) -> None:
    schedule = ScheduleConfig(name="wsd", decay_fraction=0.5)
    optimizer = OptimizerConfig(lr=0.01, grad_clip=1e-9)
    stage = duel_stage(start_step=6, optimizer=optimizer, schedule=schedule)
    train(stage, settings(), tmp_path)
    found = rows(tmp_path)
    rates = [row.get("adversary_lr") for row in found]
    assert rates[:6] == [None] * 6 and rates[6:] == pytest.approx([0.01, 0.01, 0.01, 0.005])
    assert found[-1]["adversary_grad_norm"] > 1e-3
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000010")
    assert saved.adversary_optimizer["layers.0.weight::exp_avg"].abs().max() < 1e-8
    assert saved.optimizer["head.weight::exp_avg"].abs().max() > 1e-4


def test_only_the_model_is_averaged(tmp_path: Path, duel_stage: Any) -> None:
    stage = duel_stage()
    model = train(stage, settings(ema_decay=0.9), tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000010")
    assert saved.ema.keys() == model.state_dict().keys() == saved.model.keys()
    for name, value in stage.adversary.state_dict().items():
        assert torch.equal(saved.adversary[name], value)


@pytest.mark.usefixtures("slow_bfloat16")
def test_half_precision(tmp_path: Path, duel_stage: Any) -> None:
    stage = duel_stage()
    seen: set[torch.dtype] = set()
    stage.adversary.layers[0].register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    train(stage, settings(precision="bf16"), tmp_path)
    assert seen == {torch.bfloat16}
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000010")
    for tensors in (saved.adversary, saved.adversary_optimizer):
        assert tensors and {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_not_finite_stops_both_before_their_weights(tmp_path: Path, duel_stage: Any) -> None:
    class Broken(duel_stage):
        calls = 0

        def adversary_loss(self, *args: Any) -> Any:
            loss, terms = super().adversary_loss(*args)
            self.calls += 1
            return (loss * float("inf") if self.calls == 8 else loss), terms

    stage = Broken()
    with pytest.raises(TrainingError, match=r"not finite at step 8: adversary_loss, adversary_gr"):
        train(stage, settings(), tmp_path)
    for module in (stage.model, stage.adversary):
        assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_checkpoint_of_the_model_alone(tmp_path: Path, duel_stage: Any, toy_stage: Any) -> None:
    train(toy_stage(), settings(steps=5), tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*layers\.0\.weight"):
        train(duel_stage(), settings(), tmp_path)


def test_reserved_name(tmp_path: Path, duel_stage: Any) -> None:
    class Named(duel_stage):
        def adversary_loss(self, *args: Any) -> Any:
            loss, _ = super().adversary_loss(*args)
            return loss, {"loss": loss}

    with pytest.raises(ValueError, match='logs "loss"'):
        train(Named(), settings(), tmp_path)
