"""The README's Python example runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import evatok
from tests.readme_example import run_example


def test_python_example(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example(root / "README.md", tmp_path)
    again, rest = names["again"], names["rest"]
    assert isinstance(again, evatok.Video) and again.frames.shape == (16, 64, 64, 3)
    assert isinstance(rest, evatok.Video) and len(rest) == 20
    assert (tmp_path / "clip.evt").is_file() and (tmp_path / "again.mp4").is_file()
