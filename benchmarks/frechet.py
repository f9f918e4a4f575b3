"""The Fréchet distance beside the usual way: numpy.cov and SciPy's sqrtm of the product.

    python -m benchmarks.frechet --json
    python -m benchmarks.frechet --golden

Both ways get the same float32 features in one process, in turn, with the same threads. Two times
are compared: `whole` from features to the number, `distance` from moments (here R factors, there
covariances) to the number. The memory is that of `StreamingMoments` in a fresh process: its highest
resident size (VmHWM of /proc/self/status, so Linux) less its size before the first update. SciPy
is no dependency: pip install scipy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.metrics.frechet import Moments, StreamingMoments, distance_between, frechet_distance
from tests.evaluation.golden import features, load_golden

BATCH = 256  # vectors of an update


def usual_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of (N, D)."""
    return x.mean(0, dtype=np.float64), np.cov(x, rowvar=False)


def usual_distance(x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray]) -> float:
    """From moments, by a root of the product of the covariances; its real part, as is usual."""
    from scipy.linalg import sqrtm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a singular matrix, which the usual code ignores too
        root = np.asarray(sqrtm(x[1] @ y[1]))
    return float(((x[0] - y[0]) ** 2).sum() + np.trace(x[1] + y[1] - 2 * root.real))


def our_moments(x: np.ndarray) -> Moments:
    """Mean and R factor of (N, D), both float64."""
    features = torch.from_numpy(x).double()
    mean = features.mean(0)
    factor = (features - mean) / (len(features) - 1) ** 0.5
    return Moments(len(features), mean, torch.linalg.qr(factor, mode="r").R)


def power_law(rng: np.random.Generator, count: int, dim: int, shift: float = 0.0) -> np.ndarray:
    """Features (count, dim) float32 with variances 1 / i."""
    scales = np.arange(1, dim + 1, dtype=np.float64) ** -0.5
    return (rng.standard_normal((count, dim)) * scales + shift).astype(np.float32)


def clock(run: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed(count: int, dim: int, repeats: int) -> dict[str, float]:
    """Medians over repeats of both ways' seconds, and of their ratios."""
    rng = np.random.default_rng(0)
    x, y = power_law(rng, count, dim), power_law(rng, count, dim, 0.01)
    theirs, ours = [usual_moments(z) for z in (x, y)], [our_moments(z) for z in (x, y)]
    ways: dict[str, Callable[[], float]] = {
        "usual_distance": lambda: usual_distance(theirs[0], theirs[1]),
        "our_distance": lambda: distance_between(ours[0], ours[1]),
        "usual_whole": lambda: usual_distance(usual_moments(x), usual_moments(y)),
        "our_whole": lambda: frechet_distance(x, y, biased=False),
    }
    difference = abs(ways["our_whole"]() - ways["usual_whole"]())  # warms both up
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            times[name].append(clock(ways[name]))
    result = {f"{name}_seconds": statistics.median(found) for name, found in times.items()}
    for part in ("distance", "whole"):
        pairs = zip(times[f"usual_{part}"], times[f"our_{part}"], strict=True)
        result[f"{part}_speedup"] = statistics.median(a / b for a, b in pairs)
    return {"count": count, "dim": dim, **result, "difference": difference}


def status_kib(field: str) -> int:
    """A size from the kernel's table of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, f"/proc/self/status has no {field}"
    return int(found[1])


def stream(count: int, dim: int) -> float:
    """MiB that a stream of vectors needs at most, in this process; the vectors are never kept."""
    rng = np.random.default_rng(0)
    warm = StreamingMoments(dim)
    for _ in range(2):  # libraries take their own memory at the first call
        warm.update(power_law(rng, BATCH, dim))
    del warm
    before = status_kib("VmRSS")
    state = StreamingMoments(dim)
    for start in range(0, count, BATCH):
        state.update(power_law(rng, min(BATCH, count - start), dim))
    if state.count != count:
        raise ArithmeticError(f"{state.count} vectors counted of {count}")
    return (status_kib("VmHWM") - before) / 1024


def memory(count: int, dim: int) -> dict[str, float]:
    """`stream` in a fresh process, beside the size of the features that it does not keep."""
    command = [sys.executable, "-m", "benchmarks.frechet", "--stream", str(count), str(dim)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept = count * dim * 4 / 2**20
    return {"count": count, "dim": dim, "stream_mib": float(done.stdout), "features_mib": kept}


def golden_rows() -> Iterator[dict[str, Any]]:
    """Each golden pair: the truth, and what both ways give. Errors are shares of the scale."""
    for name, case in load_golden().items():
        x, y = features(case)
        truth = float(case.get("fd_unbiased_mp50", case["fd_unbiased"]))
        ours = frechet_distance(x, y, biased=False)
        usual = usual_distance(usual_moments(x), usual_moments(y))
        errors = {"our_error": abs(ours - truth), "usual_error": abs(usual - truth)}
        yield {
            **{"name": name, "truth": truth, "ours": ours, "usual": usual},
            **{key: error / case["scale"] for key, error in errors.items()},
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0])
    cells = [[f"{v:.6g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description="Fréchet distance: ours and the usual way.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[400, 1408])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--golden", action="store_true", help="also the golden pairs")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--stream", type=int, nargs=2, metavar=("N", "D"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        print(stream(*options.stream))
        return
    if importlib.util.find_spec("scipy") is None:
        raise SystemExit("the usual way needs SciPy: pip install scipy")
    logging.getLogger("evaluation.metrics.frechet").setLevel(logging.ERROR)  # N < D is on purpose
    result: dict[str, list[dict[str, Any]]] = {
        "speed": [speed(options.count, dim, options.repeats) for dim in options.dims],
        "memory": [memory(count, options.dims[0]) for count in options.streams],
        "golden": list(golden_rows()) if options.golden else [],
    }
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), **result}))
    else:
        print("\n\n".join(table(rows) for rows in result.values() if rows))


if __name__ == "__main__":
    main()
