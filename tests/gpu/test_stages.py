"""Every stage takes a few steps on a GPU in bf16, resumes there, and leaves a model that is used.

The cases are those of tests/devices/test_stages.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evatok.workflows.train import train_config
from tests.devices import test_stages as stages

pytestmark = pytest.mark.gpu
DEVICE = "cuda"

CASES: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (stages.test_proxy, {"precision": "bf16"}),
    (stages.test_proxy_against_patches, {}),
    (stages.test_proxy_with_every_frozen_network, {}),
    (stages.test_router, {"preference": False}),
    (stages.test_router, {"preference": True}),
    (stages.test_final, {"w_q_range": None}),
    (stages.test_final, {"w_q_range": (0.5, 1.5)}),
    (stages.test_features, {}),
    (stages.test_masked, {}),
    (stages.test_generator, {}),
]


def few_steps(schema: Any, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """In the place of `stages.check`: two sittings of two steps, all numbers finite."""
    train = {"precision": "bf16", "device": DEVICE}
    name = "sim"  # the folder in which the cases look
    for steps in (2, 4):
        values = settings | {"train": settings["train"] | train | {"steps": steps}}
        found = train_config(schema.model_validate(values), folder / name)
    assert all(math.isfinite(value) for value in found["validation"].values())
    weights = load_file(folder / name / "model" / stages.FILE)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    return found


@pytest.mark.parametrize(
    ("case", "given"), CASES, ids=[f"{case.__name__}-{given}" for case, given in CASES]
)
def test_stage(
    case: Callable[..., None],
    given: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "check", few_steps)
    names = [name for name in inspect.signature(case).parameters if name not in given]
    case(**given, **{name: request.getfixturevalue(name) for name in names})


def test_the_same_loss_as_on_a_cpu(tokenizer_settings: dict[str, Any], tmp_path: Path) -> None:
    """One step in float32 from one seed: the GPU's first loss is the CPU's."""
    import json

    losses = []
    for device in ("cpu", DEVICE):
        train = tokenizer_settings["train"] | {"device": device, "steps": 1}
        config = stages.ProxyConfig.model_validate(tokenizer_settings | {"train": train})
        train_config(config, tmp_path / device)
        line = (tmp_path / device / "log.jsonl").read_text().splitlines()[0]
        losses.append(json.loads(line)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_half_precision_tokenizer(toy_dir: Path) -> None:
    from evatok.hub import load

    models = load(toy_dir, DEVICE)
    clips = torch.rand(2, 3, stages.FRAMES, stages.SIZE, stages.SIZE, device=DEVICE) * 2 - 1
    with torch.no_grad():
        model = models.final.to(torch.bfloat16)
        tokens = model.encode(clips.bfloat16(), models.router.assign(clips))
        assert model.decode(tokens).isfinite().all()
