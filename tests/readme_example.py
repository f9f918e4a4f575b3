"""The README's Python example on a short video, with fewer samples and the shipped network.

    python -P tests/readme_example.py README.md

makes its files in the working directory and runs it with whichever `evatok` is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from video.writing import write_video

SMALLER = {
    '["Frogger"] * 8': '["Frogger"]',
    "frames=48": "frames=20",
    '"i3d"': '"nano"',
    'device="auto"': 'device="cpu"',
}


def example_of(readme: Path) -> str:
    """Return the only Python block of a page, made smaller."""
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    for long, short in SMALLER.items():
        assert long in code, f"the example no longer has {long}"
        code = code.replace(long, short)
    return code


def run_example(readme: Path, folder: Path) -> dict[str, object]:
    """Run the example in a folder, which is the working directory; return its names."""
    random = np.random.default_rng(0)
    for name in ("clip", "real/a", "real/b", "fake/a", "fake/b"):
        frames = random.integers(0, 255, (16, 64, 64, 3), np.uint8)
        write_video(folder / f"{name}.mp4", frames, 15)
    names: dict[str, object] = {}
    exec(example_of(readme), names)
    return names


if __name__ == "__main__":
    run_example(Path(sys.argv[1]), Path.cwd())
