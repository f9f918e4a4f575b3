"""The toy stages as fixtures: tests are no package, so they cannot import one another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def toys() -> Any:
    """The module toy.py."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_stage(toys: Any) -> Any:
    """A model alone."""
    return toys.ToyStage


@pytest.fixture(scope="session")
def duel_stage(toys: Any) -> Any:
    """A model and its adversary."""
    return toys.DuelStage
