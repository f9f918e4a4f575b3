"""Coverage of intervals, error of the limit and bias of KVD, on Gaussians.

    python -m benchmarks.intervals --json

Each trial draws both sets anew. The expected value at N is the mean over `--references` other
draws. `width` is the mean half-width of the intervals over that of ± 1.96 true standard deviations:
above 1 they are wider than they must be. Beside them stands the plain bootstrap, which draws with
replacement and so doubles the bias.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.fvd_infinity import extrapolated, interval
from evaluation.metrics.kernel import kernel_distance


class Law(NamedTuple):
    """Two Gaussians with variances i^-decay, apart by `shift` in every feature.

    With `noise` sets are pairs, as clips and their reconstructions are: the second set is the first
    one plus so many of its standard deviations.
    """

    name: str
    clips: int
    dim: int
    decay: float
    shift: float
    noise: float | None = None

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Both sets, (clips, dim) float64."""
        scales = np.arange(1, self.dim + 1) ** (-self.decay / 2)
        x, y = rng.standard_normal((2, self.clips, self.dim)) * scales
        if self.noise is not None:
            y = x + self.noise * y
        return torch.from_numpy(x), torch.from_numpy(y + self.shift)

    @property
    def truth(self) -> float:
        """The distance of the laws."""
        wider = (1 + (self.noise or 0) ** 2) ** 0.5 - 1  # of the second one's deviations
        variance = sum(i**-self.decay for i in range(1, self.dim + 1))
        return self.dim * self.shift**2 + wider**2 * variance


LAWS = (
    Law("same", 120, 8, 0.0, 0.0),
    Law("shifted", 120, 8, 0.0, 0.4),
    Law("falling spectrum", 256, 32, 1.0, 0.05),
    Law("fewer clips than features", 48, 64, 1.0, 0.05),
    Law("pairs", 256, 32, 1.0, 0.05, noise=0.5),
    Law("near pairs", 256, 32, 1.0, 0.05, noise=0.1),
    Law("pairs, fewer than features", 48, 64, 1.0, 0.05, noise=0.5),
)


def bootstrap(x: Tensor, y: Tensor, rng: np.random.Generator, draws: int = 20) -> tuple[float, ...]:
    """The usual percentiles of distances of sets drawn with replacement."""
    values = []
    for _ in range(draws):
        a, b = (z[torch.from_numpy(rng.integers(0, len(z), len(z)))] for z in (x, y))
        values.append(frechet_distance(a, b))
    return tuple(np.quantile(values, [0.025, 0.975]).tolist())


def coverage(law: Law, trials: int, references: int) -> dict[str, Any]:
    """Share of the intervals that hold the expected value at this N."""
    rng = np.random.default_rng(1)
    values = [frechet_distance(*law.draw(rng)) for _ in range(references)]
    expected, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    found, naive = [], []
    for trial in range(trials):
        x, y = law.draw(rng)
        found.append(interval(x, y, seed=trial))
        naive.append(bootstrap(x, y, rng))
    return {
        "law": law.name,
        "count": law.clips,
        "dim": law.dim,
        "truth": law.truth,
        "expected": expected,
        "covered": sum(i.low <= expected <= i.high for i in found) / trials,
        "width": float(np.mean([i.high - i.low for i in found])) / (2 * 1.96 * spread),
        "bootstrap_covered": sum(low <= expected <= high for low, high in naive) / trials,
    }


def limits(count: int, dim: int, seeds: int) -> list[dict[str, Any]]:
    """Biased distance and limit of `count` vectors beside the truth, variances 1 / i."""
    rows = []
    for shift in (0.0, 0.05):
        law = Law("", count, dim, 1.0, shift)
        for seed in range(seeds):
            x, y = law.draw(np.random.default_rng(seed))
            rows.append(
                {
                    **{"count": count, "dim": dim, "seed": seed, "truth": law.truth},
                    **{"biased": frechet_distance(x, y), "limit": extrapolated(x, y, seed=seed)},
                }
            )
    return rows


def kernel_bias(trials: int) -> dict[str, float]:
    """KVD of two halves of one set: the mean over trials in standard errors from 0."""
    rng = np.random.default_rng(0)
    pool = Law("", 400, 32, 1.0, 0.0).draw(rng)[0]
    values = []
    for _ in range(trials):
        order = torch.from_numpy(rng.permutation(len(pool)))
        first, second = order.chunk(2)
        values.append(kernel_distance(pool[first], pool[second]))
    error = float(np.std(values, ddof=1)) / trials**0.5
    mean = float(np.mean(values))
    return {"trials": trials, "mean": mean, "standard_error": error, "errors_away": mean / error}


def main() -> None:
    """Run all three checks."""
    parser = argparse.ArgumentParser(description="Statistical checks of the distances.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--references", type=int, default=1000)
    parser.add_argument("--count", type=int, default=10_000, help="vectors of the limit's sets")
    parser.add_argument("--dim", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the limit's sets")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    logging.getLogger("evaluation.metrics.frechet").setLevel(logging.ERROR)  # N < D is on purpose
    result = {
        "intervals": [coverage(law, options.trials, options.references) for law in LAWS],
        "limits": limits(options.count, options.dim, options.seeds),
        "kernel": kernel_bias(options.trials),
    }
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
