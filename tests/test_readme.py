"""The README's Python example runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import evatok
from video.io import write_video

SMALLER = {'["Frogger"] * 8': '["Frogger"]', "frames=48": "frames=20", '"i3d"': '"nano"',
           'device="auto"': 'device="cpu"'}  # fmt: skip


def test_python_example(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a short video, with fewer samples, and the feature network that is shipped."""
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    for long, short in SMALLER.items():
        assert long in code
        code = code.replace(long, short)
    random = np.random.default_rng(0)
    for name in ("clip", "real/a", "real/b", "fake/a", "fake/b"):
        frames = random.integers(0, 255, (16, 64, 64, 3), np.uint8)
        write_video(tmp_path / f"{name}.mp4", frames, 15)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    again, rest = names["again"], names["rest"]
    assert isinstance(again, evatok.Video) and again.frames.shape == (16, 64, 64, 3)
    assert isinstance(rest, evatok.Video) and len(rest) == 20
    assert (tmp_path / "clip.evt").is_file() and (tmp_path / "again.mp4").is_file()
