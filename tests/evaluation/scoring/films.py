"""Videos whose windows all differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from video.writing import write_video


def film(path: Path, seed: int, frames: int, height: int = 48, width: int = 64) -> None:
    """A video of noise that drifts, so that each of its windows differs."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (1, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    drift = np.arange(frames).reshape(-1, 1, 1, 1) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (base + drift).clip(0, 255).astype(np.uint8), fps=10)
