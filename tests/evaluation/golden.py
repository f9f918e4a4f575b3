"""The golden feature pairs and their values.

Features are made anew from their seeds, by element-wise operations alone, so that they are the same
bits everywhere; a checksum of them is kept with the values.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).resolve().parent.parent / "assets" / "golden" / "distances.json"
SCALE = 26  # of "decay": deviations fall by this many powers of two
CONSTANT = {  # means and deviations of both sides
    "tiny": (0.0, 0.0, 1e-6, 1.5e-6),
    "offset1e4": (1e4, 1e4 + 0.5, 1.0, 1.2),
    "offset1e7": (1e7, 1e7 + 0.5, 1.0, 1.2),
    "constdims": (None, 0.0, 1.0, 1.3),
    "dupcols": (None, 0.0, 1.0, 1.3),
}  # None: a ramp


def load_golden() -> dict[str, dict[str, Any]]:
    """The true values by case."""
    return json.loads(FILE.read_text())["cases"]


def features(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Both sides (N, D), (M, D) of a case, float32 or float64."""
    kind, dim = case["kind"], case["d"]
    rng = np.random.default_rng(case["seed"])
    ramp = (np.arange(dim) + 1.0) / dim

    def draw(count: int, neighbour: float, deviation: Any, mean: Any) -> np.ndarray:
        x = rng.standard_normal((count, dim))
        for _ in range(3):
            mixed = x.copy()
            mixed[:, 1:] = x[:, 1:] + neighbour * x[:, :-1]
            x = mixed
        return x * deviation + mean

    if kind == "decay":
        deviation = np.exp2(-np.arange(dim) * (SCALE / dim))
        a, b = draw(case["n"], 0.5, deviation, ramp), draw(case["m"], 0.3, deviation * 1.25, ramp)
    elif kind in CONSTANT:
        first, second, small, large = CONSTANT[kind]
        a = draw(case["n"], 0.5, small, ramp if first is None else first)
        b = draw(case["m"], 0.25, large, second)
    else:
        a, b = draw(case["n"], 0.5, 0.5 + ramp, ramp), draw(case["m"], 0.25, 1.5 - ramp, 0.5 * ramp)
    if kind == "dupcols":
        for x in (a, b):
            x[:, dim // 2 :] = x[:, : dim // 2]
    if kind == "constdims":
        a[:, :8], b[:, 4:12] = 3.0, -1.0
    dtype = np.float64 if kind == "offset1e7" else np.float32
    a, b = a.astype(dtype), b.astype(dtype)
    exact = a.astype(np.float64)
    if kind == "identical":
        b = a.copy()
    elif kind == "neardup":
        b = (exact + 1e-3 * rng.standard_normal(a.shape)).astype(dtype)
    elif kind == "scaled2":
        b = (2 * exact).astype(dtype)
    elif kind == "shift":
        a, b = exact, exact + 0.5
    return a, b


def checksum(a: np.ndarray, b: np.ndarray) -> str:
    """sha256 in hex of both sides' bytes."""
    return hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()
