"""Shapes of a module without values: those of the module itself, and no compiler is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from evatok.core.loading.shapes import ShapesAlone
from tests.evatok.core.loading.test_pretrained import gpt, router, tokenizer


def mixed() -> nn.Module:
    """What the models do not do, or not in this order."""
    module = nn.Module()
    module.a = nn.Parameter(2 * torch.randn(3, 1).double() + torch.randn(1, 4))
    module.b = nn.Parameter(torch.arange(1, 8, 2) / 3 * torch.ones(2, 1))
    module.c = nn.Parameter(nn.init.eye_(torch.empty(3, 5)) ** 2)
    return module


@pytest.mark.parametrize("build", [tokenizer, router, gpt, mixed])
def test_the_shapes_are_the_modules(build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"), ShapesAlone():
        outline = build().state_dict()
    real = build().state_dict()
    assert all(value.is_meta for value in outline.values())
    told = {name: (value.shape, value.dtype) for name, value in outline.items()}
    assert told == {name: (value.shape, value.dtype) for name, value in real.items()}


def test_loading_a_model_imports_no_compiler() -> None:
    code = (
        "import evatok, sys; model = evatok.load('nano'); model.final, model.router, "
        "model.generator; print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
