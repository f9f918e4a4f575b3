"""Layers recomputed in the backward pass: the same bits, less kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evatok.core.config import ConfigError, TrainConfig
from training.layers import checkpoint_activations, layers_of
from training.loop import train


def settings(**changes: Any) -> TrainConfig:
    values = {"steps": 6, "batch_size": 8, "validate_every": 3, "save_every": 0, "ema_decay": 0.5}
    return TrainConfig.model_validate(values | changes)


@pytest.fixture
def layered(toys: Any) -> Any:
    class LayeredStage(toys.ToyStage):
        def build(self, dropout: float) -> nn.Module:
            return toys.LayeredModel(dropout)

    return LayeredStage


def test_finds_layers_at_any_depth(toys: Any) -> None:
    inner = toys.LayeredModel(0.0)
    other = toys.LayeredModel(0.0)
    outer = nn.Sequential(inner, nn.Linear(2, 2), other)
    assert layers_of(inner) == list(inner.layers)
    assert layers_of(outer) == [*inner.layers, *other.layers]


@pytest.mark.parametrize("setting, value", [("checkpoint_activations", True), ("sharding", "fsdp")])
def test_a_model_without_layers(
    tmp_path: Path, toy_stage: Any, setting: str, value: object
) -> None:
    with pytest.raises(
        ConfigError, match=rf"train\.{setting}: ToyModel has no layers, set it back"
    ):
        train(toy_stage(), settings(**{setting: value}), tmp_path)


def test_compiled_pieces_are_not_sharded(tmp_path: Path, layered: Any) -> None:
    stage = layered()
    stage.model.compile_parts = lambda: None
    with pytest.raises(ConfigError, match=r"train\.sharding fsdp gathers their weights in between"):
        train(stage, settings(sharding="fsdp", compile=True), tmp_path)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_same_bits(tmp_path: Path, layered: Any, accumulation: int) -> None:
    """With dropout, averaging and validation between steps."""
    plain, less = (
        train(
            layered(),
            settings(checkpoint_activations=on, grad_accumulation=accumulation),
            tmp_path / str(on),
        ).state_dict()
        for on in (False, True)
    )
    assert plain.keys() == less.keys()
    assert all(torch.equal(value, less[name]) for name, value in plain.items())


def test_may_change_when_a_run_goes_on(tmp_path: Path, layered: Any) -> None:
    train(layered(), settings(), tmp_path)
    model = train(layered(), settings(steps=8, checkpoint_activations=True), tmp_path)
    assert not any("forward" in vars(module) for module in model.modules())


def test_keeps_less(toys: Any) -> None:
    """Of the 13 wide activations inside a layer none is kept."""
    model, x = toys.LayeredModel(0.0), torch.randn(8, 8)

    def wide_kept() -> int:
        kept: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x, torch.zeros(8, dtype=torch.int64)).sum()
        return sum(tuple(tensor.shape) == (8, 13) for tensor in kept)

    assert wide_kept() > 0
    with checkpoint_activations(model):
        assert wide_kept() == 0
