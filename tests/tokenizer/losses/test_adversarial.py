"""Adversarial losses against numbers made by hand; both sides of a step; every setting bites."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor, nn

from tests.tokenizer.videos import striped_videos
from tokenizer.losses.adversarial import (
    AdversarialConfig,
    AdversarialObjective,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    make_objective,
)
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import VideoTokenizer
from tokenizer.training.tokenizer_stage import ProxyConfig, TokenizerStage
from training.loop import Adversarial, train
from training.runs.checkpoint import latest, load
from training.trainee import Trainee

REAL, FAKE = torch.tensor([[2.0], [-0.5]]), torch.tensor([[-3.0], [0.25]])
SMALL = {"width": 24, "layers": 1, "heads": 2}


spec = importlib.util.spec_from_file_location("frozen", Path(__file__).parents[1] / "frozen.py")
assert spec is not None and spec.loader is not None
frozen = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frozen)


def log1pexp(x: float) -> float:
    return math.log(1 + math.exp(x))


# --- losses ---------------------------------------------------------------------------------------


def test_hinge_by_hand() -> None:
    # real: max(0, 1 − 2), max(0, 1 + 0.5); fake: max(0, 1 − 3), max(0, 1 + 0.25)
    expected = ((0 + 1.5) / 2 + (0 + 1.25) / 2) / 2
    assert float(discriminator_loss(REAL, FAKE, "hinge")) == pytest.approx(expected)
    assert float(generator_loss(FAKE, "hinge")) == pytest.approx((3 - 0.25) / 2)


def test_non_saturating_by_hand() -> None:
    on_real = (log1pexp(-2) + log1pexp(0.5)) / 2
    on_fake = (log1pexp(-3) + log1pexp(0.25)) / 2
    found = float(discriminator_loss(REAL, FAKE, "non_saturating"))
    assert found == pytest.approx((on_real + on_fake) / 2)
    found = float(generator_loss(FAKE, "non_saturating"))
    assert found == pytest.approx((log1pexp(3) + log1pexp(-0.25)) / 2)


def test_smoothing_by_hand() -> None:
    found = discriminator_loss(REAL, FAKE, "non_saturating", 0.15, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    means = []
    for logits, sign in ((REAL, -1), (FAKE, 1)):
        off = (0.15 * torch.randn(2, 1, generator=generator)).abs().clamp(max=0.3)
        assert off.max() > 0
        # cross-entropy: what is off the target counts for the other class
        right, wrong = (
            torch.tensor([[log1pexp(s * float(x))] for x in logits]) for s in (sign, -sign)
        )
        means.append(((1 - off) * right + off * wrong).mean())
    torch.testing.assert_close(found, sum(means) / 2)


def test_smoothing_is_bounded() -> None:
    """However far the noise goes, the targets stay at least 0.7 and at most 0.3."""
    sure = torch.full((4000, 1), 20.0)
    loss = discriminator_loss(sure, -sure, "non_saturating", 0.15, torch.Generator())
    assert float(loss) < 0.3 * 20


def test_lecam_by_hand() -> None:
    # real above the fake mean −1: 3, 0.5; fake below the real mean 0.5: 3.5, 0.25
    expected = (9 + 0.25) / 2 + (12.25 + 0.0625) / 2
    found = lecam_loss(REAL, FAKE, torch.tensor(0.5), torch.tensor(-1.0))
    assert float(found) == pytest.approx(expected)
    assert float(lecam_loss(REAL, FAKE, torch.tensor(-9.0), torch.tensor(9.0))) == 0


def test_losses_do_not_depend_on_the_cut() -> None:
    """A batch in two equal parts: the means of both are the mean of all."""
    torch.manual_seed(0)
    real, fake, means = torch.randn(6, 4), torch.randn(6, 4), torch.randn(2)
    for loss in (
        lambda r, f: lecam_loss(r, f, means[0], means[1]),
        lambda r, f: discriminator_loss(r, f, "hinge"),
    ):
        parts = [loss(r, f) for r, f in zip(real.split(3), fake.split(3), strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(), loss(real, fake))


def test_adaptive_weight_by_its_definition() -> None:
    torch.manual_seed(0)
    last, x = nn.Linear(4, 3), torch.randn(5, 4)
    others, judged = last(x).abs().mean(), (last(x) * torch.randn(5, 3)).square().mean()
    found = adaptive_weight(others, judged, last.weight)
    norms = []
    for term in (others, judged):
        last.zero_grad()
        term.backward(retain_graph=True)
        assert last.weight.grad is not None
        norms.append(float(last.weight.grad.square().sum().sqrt()))
    assert float(found) == pytest.approx(norms[0] / (norms[1] + 1e-4))
    assert float(adaptive_weight(others, judged * 1e-20, last.weight)) == pytest.approx(
        norms[0] / 1e-4, rel=1e-3
    )
    assert float(adaptive_weight(others * 1e6, judged * 1e-20, last.weight)) == 1e4
    with pytest.raises(ValueError, match="looks at pixels"):
        adaptive_weight(x.requires_grad_().sum(), judged, last.weight)


# --- both sides -----------------------------------------------------------------------------------


def objective_of(**changes: Any) -> AdversarialObjective:
    settings = {"weight": 0.5, "discriminator": SMALL}
    torch.manual_seed(0)
    objective = make_objective(AdversarialConfig.model_validate(settings | changes), 12, 16)
    assert objective is not None
    with torch.no_grad():
        for parameter in objective.adversary.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return objective


def one_step(
    model: VideoTokenizer, clips: Tensor, objective: AdversarialObjective
) -> tuple[Tensor, dict, Trainee]:
    """The model's loss, its terms, and the adversary, which has judged."""
    steps = range(10)
    trainee = Trainee(
        objective.adversary, objective.config.optimizer, objective.config.schedule, steps
    )
    model.zero_grad()
    result = model(clips, torch.full((5, 3), 4))
    others, _ = tokenizer_loss(result, clips, LossConfig())
    with trainee.frozen():
        last = model.patch_head.weight
        loss, terms = objective.generator_side(
            objective.adversary, clips, result.clips, others, last
        )
        loss.backward()
    return loss, terms | {"others": others.detach(), "made": result.clips.detach()}, trainee


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_sides_do_not_touch_each_other(model: VideoTokenizer, clips: Tensor) -> None:
    objective = objective_of(lecam=0.1)
    _, _, trainee = one_step(model, clips, objective)
    assert all(p.grad is None and p.requires_grad for p in objective.adversary.parameters())
    before = gradient(model)
    loss, _ = objective.discriminator_side(objective.adversary, torch.Generator())
    loss.backward()
    assert torch.equal(gradient(model), before)
    assert all(p.grad is not None and p.grad.any() for p in trainee.parameters)


def test_loss_is_the_weighted_sum(model: VideoTokenizer, clips: Tensor) -> None:
    objective = objective_of(kind="non_saturating")
    loss, terms, _ = one_step(model, clips, objective)
    judged = generator_loss(objective.adversary(terms["made"]), "non_saturating")
    torch.testing.assert_close(terms["adversarial"], judged.detach())
    torch.testing.assert_close(loss.detach(), terms["others"] + 0.5 * judged.detach())


def test_adaptive_weight_scales_the_judgement(model: VideoTokenizer, clips: Tensor) -> None:
    """The same gradient as with that weight written into the settings."""
    loss, terms, _ = one_step(model, clips, objective_of(adaptive=True))
    found, factor = gradient(model), float(terms["adaptive_weight"])
    assert factor > 0 and abs(factor - 1) > 1e-3
    plain, expected, _ = one_step(model, clips, objective_of(weight=0.5 * factor))
    torch.testing.assert_close(found, gradient(model), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(terms["adversarial"], expected["adversarial"])
    # and the definition: both gradients at the last layer, by autograd through everything
    objective = objective_of()
    result = model(clips, torch.full((5, 3), 4))
    others, _ = tokenizer_loss(result, clips, LossConfig())
    judged = generator_loss(objective.adversary(result.clips), "hinge")
    assert factor == pytest.approx(
        float(adaptive_weight(others, judged, model.patch_head.weight)), rel=1e-4
    )


def test_running_means_follow_the_step(clips: Tensor) -> None:
    """Over the parts of a step, once a step, and only where LeCAM needs them."""
    objective = objective_of(lecam=0.1, lecam_decay=0.9)
    means: list[list[Tensor]] = [[], []]
    for part in (clips[:2], clips[2:4]):
        made = part.flip(0) * 0.5
        objective._made = (part, made)
        objective.discriminator_side(objective.adversary, torch.Generator())
        for kind, x in zip(means, (part, made), strict=True):
            kind.append(objective.adversary(x).mean())
    assert not objective.adversary.mean_real.any()
    objective.after_step()
    objective.after_step()  # a step in which the discriminator does not learn
    running = (objective.adversary.mean_real, objective.adversary.mean_fake)
    for mean, parts in zip(running, means, strict=True):
        torch.testing.assert_close(mean, 0.1 * torch.stack(parts).mean().detach())
    off = objective_of()
    off._made = (clips, clips)
    assert "lecam" not in off.discriminator_side(off.adversary, torch.Generator())[1]
    off.after_step()
    assert not off.adversary.mean_real.any()


# --- settings and runs ----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return striped_videos(tmp_path, 4, 12)


def settings(data: dict[str, Any], steps: int = 10, **adversarial: Any) -> ProxyConfig:
    former = {"width": 32, "layers": 1, "heads": 2}
    objective = {"weight": 0.3, "discriminator": SMALL, "optimizer": {"lr": 1e-3}}
    return ProxyConfig.model_validate(
        {
            "data": data,
            "model": {
                "levels": [1, 4],
                "num_frames": 12,
                "size": 16,
                "encoder": former,
                "decoder": former,
                "codebook_size": 32,
            },
            "adversarial": objective | adversarial,
            "codebook": {"restart_every": 0},
            "train": {
                "steps": steps,
                "batch_size": 4,
                "log_every": 1,
                "save_every": 5,
                "validate_every": 0,
                "optimizer": {"lr": 1e-3},
            },
        }
    )


def run(config: ProxyConfig, run_dir: Path) -> tuple[list[dict], dict[str, Tensor]]:
    """Log rows, and all weights of both sides."""
    stage = TokenizerStage(config)
    train(stage, config.train, run_dir, config)
    saved = load(latest(run_dir) or run_dir)
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return rows, saved.model | {f"adversary.{k}": v for k, v in saved.adversary.items()}


def test_ten_steps_stay_finite(data: dict[str, Any], tmp_path: Path) -> None:
    objective = {"lecam": 0.001, "adaptive": True, "kind": "non_saturating", "smoothing": 0.15}
    rows, weights = run(settings(data, **objective), tmp_path / "run")
    assert len(rows) == 10
    for name in ("loss", "adversarial", "adaptive_weight", "adversary_loss", "lecam"):
        assert all(math.isfinite(row[name]) for row in rows), name
    assert rows[-1]["logit_real"] > rows[-1]["logit_fake"]  # it learns
    assert all(value.isfinite().all() for value in weights.values())
    assert weights["adversary.mean_real"] != 0


def test_weight_0_builds_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    stage = TokenizerStage(settings(data, weight=0.0))
    assert stage.objective is None and stage.adversary is None
    with_game = TokenizerStage(settings(data))
    assert isinstance(with_game, Adversarial) and with_game.adversary is not None
    for a, b in zip(stage.model.parameters(), with_game.model.parameters(), strict=True):
        assert torch.equal(a, b)  # the tokenizer starts where it starts without
    rows, weights = run(settings(data, weight=0.0), tmp_path / "run")
    assert not any(name.startswith("advers") for name in {*rows[0], *weights})


@pytest.mark.parametrize("discriminator", ["patch", "semantic"])
def test_killed_and_resumed(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, discriminator: str
) -> None:
    """Broken off at step 8, three steps behind the checkpoint: the same bits, LeCAM's means too."""
    changes: dict[str, Any] = {"lecam": 0.01, "smoothing": 0.1, "every": 2}
    if discriminator == "semantic":
        monkeypatch.setattr(
            "tokenizer.losses.semantic_discriminator.load_encoder", lambda _: frozen.ToyEncoder()
        )
        changes["discriminator"] = {
            "kind": "semantic", "layers": [1, 3], "width": 8, "groups": 2, "kernel": 5,
        }  # fmt: skip
    config = settings(data, kind="non_saturating", **changes)
    _, whole = run(config, tmp_path / "whole")
    stage = TokenizerStage(config)
    after_step = stage.after_step

    def broken(model: nn.Module, step: int, generator: torch.Generator) -> None:
        after_step(model, step, generator)
        if step == 8:
            raise KeyboardInterrupt

    stage.after_step = broken
    with pytest.raises(KeyboardInterrupt):
        train(stage, config.train, tmp_path / "cut", config)
    _, cut = run(config, tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.parametrize("adaptive", [False, True])
def test_recomputed_layers_change_no_bit(
    data: dict[str, Any], tmp_path: Path, adaptive: bool
) -> None:
    """Those of the discriminator too, which is frozen while it judges."""
    plain = settings(data, 3, adaptive=adaptive)
    train_config = plain.train.model_copy(update={"checkpoint_activations": True})
    _, ours = run(plain.model_copy(update={"train": train_config}), tmp_path / "less")
    _, theirs = run(plain, tmp_path / "plain")
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


BITES = {
    "weight": 0.6,
    "kind": "non_saturating",
    "lecam": 0.5,
    "lecam_decay": 0.5,
    "adaptive": True,
    "start_step": 4,
    "every": 3,
    "optimizer": {"lr": 5e-3},
    "schedule": {"warmup_steps": 5},
    "discriminator": SMALL | {"per_clip": True},
}


def test_every_setting_bites(data: dict[str, Any], tmp_path: Path) -> None:
    def last_layer(**changes: Any) -> Tensor:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return run(settings(data, 6, **changes), folder)[1]["patch_head.weight"]

    base = last_layer(lecam=0.1)
    for name, value in BITES.items():
        assert not torch.equal(last_layer(**({"lecam": 0.1} | {name: value})), base), name
    plain, smoothed = (last_layer(kind="non_saturating", smoothing=s) for s in (0.0, 0.15))
    assert not torch.equal(plain, smoothed)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(pydantic.ValidationError, match="smoothing needs kind non_saturating"):
        AdversarialConfig(weight=0.1, smoothing=0.1)
    with pytest.raises(pydantic.ValidationError, match="discriminator"):
        AdversarialConfig.model_validate({"discriminator": {"kind": "other"}})
