"""Which parameter goes where, and state that survives flattening."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from evatok.core.config import OptimizerConfig
from training.optimization.muon import Muon
from training.optimization.optimizer import (
    build_optimizers,
    load_state_tensors,
    set_rates,
    state_tensors,
)


class Mixed(nn.Module):
    looked_up = ("position", "codebook")
    output_layers = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(6, 4))
        self.codebook = nn.Parameter(torch.randn(5, 4))
        self.embedding = nn.Embedding(3, 4)
        self.inner = nn.ModuleDict({"overhead": nn.Linear(4, 4)})  # no name decides
        self.conv = nn.Conv1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def groups(name: Any) -> dict[str, tuple[str, float]]:
    """Parameter name → (optimiser, weight decay)."""
    config = OptimizerConfig(name=name, weight_decay=0.1)
    return {
        parameter: (type(optimizer).__name__, group["weight_decay"])
        for optimizer in build_optimizers(Mixed(), config)
        for group in optimizer.param_groups
        for parameter in group["names"]
    }


def test_muon_takes_hidden_matrices_only() -> None:
    assert groups("muon") == {
        "inner.overhead.weight": ("Muon", 0.1),
        "conv.weight": ("AdamW", 0.1),
        "head.weight": ("AdamW", 0.1),
        "position": ("AdamW", 0.0),
        "codebook": ("AdamW", 0.0),
        "embedding.weight": ("AdamW", 0.0),
        "inner.overhead.bias": ("AdamW", 0.0),
        "conv.bias": ("AdamW", 0.0),
        "norm.weight": ("AdamW", 0.0),
        "norm.bias": ("AdamW", 0.0),
        "head.bias": ("AdamW", 0.0),
    }


def test_adamw_takes_all_with_the_same_decay() -> None:
    muon, adamw = groups("muon"), groups("adamw")
    assert {name: decay for name, (_, decay) in adamw.items()} == {
        name: decay for name, (_, decay) in muon.items()
    }
    assert {kind for kind, _ in adamw.values()} == {"AdamW"}


def test_rates_are_multiplied_alike() -> None:
    optimizers = build_optimizers(Mixed(), OptimizerConfig(name="muon", lr=0.1, muon_lr=0.4))
    set_rates(optimizers, 0.5)
    rates = {type(o).__name__: {g["lr"] for g in o.param_groups} for o in optimizers}
    assert rates == {"Muon": {0.2}, "AdamW": {0.05}}


def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_survives(name: Any) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1)
    model = Mixed()
    optimizers = build_optimizers(model, config)
    step(model, optimizers, 0)
    flat = {key: value.clone() for key, value in state_tensors(optimizers).items()}
    assert "head.bias::exp_avg" in flat
    other = Mixed()
    other.load_state_dict(model.state_dict())
    fresh = build_optimizers(other, config)
    load_state_tensors(fresh, flat)
    step(model, optimizers, 1)
    step(other, fresh, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizers(nn.Linear(2, 2).requires_grad_(False), OptimizerConfig())


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_by_shape_is_pytorchs_muon(adjust: str) -> None:
    shapes = [(24, 8), (8, 24), (24, 8), (8, 8), (24, 8)]
    sides = []
    for kind in (Muon, torch.optim.Muon):
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.1, adjust_lr_fn=adjust)
        for number in range(3):
            for index, parameter in enumerate(parameters):
                skips = number == 1 and index == 2  # a parameter without a gradient
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = None if skips else gradient
            optimizer.step()
        sides.append((parameters, [optimizer.state[p]["momentum_buffer"] for p in parameters]))
    (ours, our_momenta), (theirs, their_momenta) = sides
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=6e-3, rtol=0)  # products in bfloat16
    for a, b in zip(our_momenta, their_momenta, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
