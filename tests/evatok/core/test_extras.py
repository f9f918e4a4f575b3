"""The core runs without the packages of the extras, and a missing one is named."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from evatok.cli.errors import message_for_user
from evatok.core.errors import MissingPackageError
from evatok.core.extras import EXTRAS, extra


def test_core_runs_without_extras(root: Path, toy_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "tests/evatok/without_extras.py"), str(toy_dir)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'{package} is not installed: pip install "evatok[{name}]"'
        for package, name in (
            ("matplotlib", "evaluation"),
            ("torchmetrics", "evaluation"),
            ("pyarrow", "train"),
            ("pyarrow", "train"),
            ("tensorboard", "train"),
        )
    ]


def test_extra_lets_other_imports_fail_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r'"evatok\[train\]"') as caught, extra("train"):
        import pyarrow.parquet  # noqa: F401
    assert isinstance(caught.value, ImportError)
    message = message_for_user(caught.value)
    assert message == 'pyarrow is not installed: pip install "evatok[train]"'
    with pytest.raises(ModuleNotFoundError, match="nothing_here"), extra("train"):
        import nothing_here  # pyright: ignore[reportMissingImports]  # noqa: F401


def test_extras_are_those_of_the_project(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = {
        name: tuple(
            sorted(line.partition(">")[0] for line in project["optional-dependencies"][name])
        )
        for name in EXTRAS
    }
    assert names == EXTRAS
    core = {line.partition(">")[0] for line in project["dependencies"]}
    assert not core & {package for packages in EXTRAS.values() for package in packages}
