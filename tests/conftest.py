"""What holds for every test: warnings are errors, threads are quiet, nothing is downloaded."""

from __future__ import annotations

import os

# Before torch is imported: waiting threads must not spin on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest
import torch

# No test judges how fast an example is: the machine may be busy.
hypothesis.settings.register_profile("evatok", deadline=None)
hypothesis.settings.load_profile("evatok")

ROOT = Path(__file__).resolve().parent.parent

# Each entry says whose warning it is and why nothing here can mend it.
ALLOWED_WARNINGS = [
    # torch.utils.data looks for pinned memory on machines without an accelerator.
    "ignore:'pin_memory' argument is set as true but no accelerator:UserWarning",
    # tensorboard's generated protocol buffers, on Python 3.12 and newer.
    "ignore:Type google.protobuf.pyext.*:DeprecationWarning",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for line in ALLOWED_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    # Two workers on two cores: more threads than one each only wait for each other.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def slow_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is bfloat16, also on a CPU that would compute in float32 instead."""
    for place in ("evatok.core.compute.precision", "training.optimization.muon"):
        monkeypatch.setattr(f"{place}.has_bfloat16", lambda _: True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """Golden values and odd files, see its README."""
    return ROOT / "tests" / "assets"


@pytest.fixture(scope="session")
def torchrun(root: Path) -> Callable[[Sequence[object]], str]:
    """Start two processes by torchrun, each in an interpreter of its own; their stderr."""

    def run(words: Sequence[object]) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        process = subprocess.Popen(
            [*launcher, "--nproc-per-node", "2", *map(str, words)],
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, told = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends what it has started
            process.communicate(timeout=60)
            raise
        assert process.returncode == 0, told
        return told

    return run
