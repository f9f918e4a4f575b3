"""Several sets against one real set: which is nearer, and is that more than chance?

Every contender is cut to the same number of clips, that of the smallest, since fewer clips score
higher. For a difference of two contenders both are halved again and again, against one half of the
real set, and clips of one name (reconstructions of the same clip) are in a half together: what the
contenders share by chance cancels. Halves drawn without replacement spread as independent whole
sets do (`evaluation.metrics.fvd_infinity.interval`), so a difference of distances has the 95 %
interval d ± t · spread. "Within chance" means that it holds 0.

Shape letters: N clips, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.fvd_infinity import student
from evaluation.scoring.clips import Cut, VideoClips
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.score import check_metrics, shared_features
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import joined_rank
from evatok.core.processes.threads import one_thread

DRAWS = 40


@dataclass(frozen=True)
class Side:
    """A set.

    Attributes:
        features: (N, D) float32.
        names: of the N clips.
    """

    features: Tensor
    names: Sequence[str]

    def first(self, order: Mapping[str, int], count: int) -> Tensor:
        """Features of the clips that come first in an order of names."""
        rows = np.argsort([order[name] for name in self.names], kind="stable")[:count]
        return self.features[torch.from_numpy(rows)]


@dataclass(frozen=True)
class Comparison:
    """Contenders against one real set, by name.

    Attributes:
        values: distances of the whole sets, nearest first.
        spreads: half the width of their 95 % intervals.
        differences: of two contenders, the nearer first: distance of the second less that of the
            first, and half the width of its interval.
        num_clips: of every contender.
    """

    values: dict[str, float]
    spreads: dict[str, float]
    differences: dict[tuple[str, str], tuple[float, float]]
    num_clips: int

    def is_chance(self, near: str, far: str) -> bool:
        """Whether the interval of their difference holds 0."""
        difference, spread = self.differences[near, far]
        return difference <= spread

    def verdict(self, name: str) -> str:
        """Significance of a contender's rank, in words."""
        order = list(self.values)
        best = order[0]
        if name == best:
            others = [other for other in order[1:] if self.is_chance(best, other)]
            return f"nearest, but {_list(others)} within chance" if others else "nearest"
        difference, spread = self.differences[best, name]
        interval = f"{difference - spread:.4g} to {difference + spread:.4g}"
        if self.is_chance(best, name):
            return f"within chance of {best} (difference {difference:.4g}, 95 %: {interval})"
        return f"farther than {best} by {difference:.4g} (95 %: {interval})"


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def compared(
    real: Side, fakes: Mapping[str, Side], biased: bool = True, seed: int = 0, draws: int = DRAWS
) -> Comparison:
    """Compare contenders.

    Args:
        real: the set that all are measured against.
        fakes: the contenders, two clips or more each.
        biased: as in `evaluation.metrics.frechet.frechet_distance`.
        seed: of cuts and halves.
        draws: how many halves.
    """
    rng = np.random.default_rng(seed)
    names = sorted({*real.names, *(name for side in fakes.values() for name in side.names)})

    def order() -> dict[str, int]:
        return dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))

    count = min(len(side.names) for side in fakes.values())
    cut, fair = order(), {}
    for key, side in fakes.items():
        kept = sorted(np.argsort([cut[name] for name in side.names], kind="stable")[:count])
        rows = [int(row) for row in kept]
        fair[key] = Side(side.features[rows], [side.names[row] for row in rows])
    values = {key: frechet_distance(real.features, side.features, biased)
              for key, side in fair.items()}  # fmt: skip
    halves: dict[str, list[float]] = {key: [] for key in fair}
    for _ in range(draws):
        shared = order()
        half = real.first(shared, len(real.names) // 2)
        for key, side in fair.items():
            halves[key].append(frechet_distance(half, side.first(shared, count // 2), biased))
    nearest = sorted(values, key=lambda key: values[key])
    t = student(draws - 1)
    differences = {}
    for near, far in combinations(nearest, 2):
        apart = np.subtract(halves[far], halves[near])
        differences[near, far] = (values[far] - values[near], t * float(np.std(apart, ddof=1)))
    return Comparison(
        {key: values[key] for key in nearest},
        {key: t * float(np.std(halves[key], ddof=1)) for key in nearest},
        differences,
        count,
    )


def compare_folders(
    real: Path,
    fakes: Sequence[Path],
    networks: Sequence[FeatureNetwork],
    *,
    cut: Cut | None = None,
    biased: bool = True,
    cache: FeatureCache | None = None,
) -> dict[str, Any]:
    """Score several inputs against one.

    Joined processes share the clips, as in `evaluation.scoring.score.score_sides`.

    Returns:
        JSON-able, in the first process: `compared`, rows of {name, fvd[<network>], low, high,
        clips, verdict}, nearest first; `differences`, rows of {network, near, far, difference,
        low, high, within_chance}; `num_real`, `num_clips`, `cut`, `biased`, `networks`, `data`,
        and `damaged` and `padded` by input. Nothing in the others.

    Raises:
        EvatokError: fewer than four clips of an input, or the same input twice.
    """
    check_metrics(networks, ("fvd",))
    cut = cut or Cut()
    names = _short([real, *fakes])
    inputs = {name: VideoClips(path, cut) for name, path in names.items()}
    sides = {name: shared_features(clips, networks, name, cache) for name, clips in inputs.items()}
    for name, side in sides.items():
        if len(side.names) < 4:
            raise EvatokError(f"{name} has {len(side.names)} clips; halves need 4 or more")
    if joined_rank().rank:
        return {}
    rows, pairs = [], []
    first, *contenders = names
    with one_thread():
        for n, network in enumerate(networks):
            every = {name: Side(side.vectors[n], side.names) for name, side in sides.items()}
            done = compared(every[first], {name: every[name] for name in contenders}, biased)
            rows += [
                {
                    "name": name,
                    f"fvd[{network.name}]": value,
                    "low": value - done.spreads[name],
                    "high": value + done.spreads[name],
                    "clips": done.num_clips,
                    "verdict": done.verdict(name),
                }
                for name, value in done.values.items()
            ]
            pairs += [
                {
                    "network": network.name,
                    "near": near,
                    "far": far,
                    "difference": difference,
                    "low": difference - spread,
                    "high": difference + spread,
                    "within_chance": done.is_chance(near, far),
                }
                for (near, far), (difference, spread) in done.differences.items()
            ]
    return {
        "compared": rows,
        "differences": pairs,
        "num_real": len(sides[first].names),
        "num_clips": min(len(sides[name].names) for name in contenders),
        "cut": cut.model_dump(mode="json"),
        "biased": biased,
        "networks": {network.name: network.checksum for network in networks},
        "data": inputs[first].fingerprint(),
        "damaged": {name: clips.damaged for name, clips in inputs.items() if clips.damaged},
        "padded": {name: clips.padded for name, clips in inputs.items() if clips.padded},
    }


def _short(paths: Sequence[Path]) -> dict[str, Path]:
    """Paths by their last part, or whole where that is not unique.

    Raises:
        EvatokError: one path is given twice.
    """
    lasts = [path.resolve().name for path in paths]
    out: dict[str, Path] = {}
    for last, path in zip(lasts, paths, strict=True):
        name = last if lasts.count(last) == 1 else str(path)
        if name in out:
            raise EvatokError(f"{path} is given twice: name each set once")
        out[name] = path
    return out
