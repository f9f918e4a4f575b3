"""The distances as torchmetrics metrics, which keep features with the ids of their clips.

They stand apart from the functions because torchmetrics takes longer to import than torch, above
all where Transformers is installed.

Shape letters: N vectors of a side, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from evatok.core.extras import extra

with extra("evaluation"):
    from torchmetrics import Metric

from evaluation.metrics.features import check_finite, in_order
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.kernel import jedi_distance, kernel_distance
from evaluation.metrics.prdc import coverage
from evatok.core.errors import EvatokError


class FeatureMetric(Metric):
    """A score of two sets of features that survives sharding, bit for bit.

    Features are kept (float32, 16 MB for 10 000 of 400) with the ids of their clips. `compute`
    gathers them, sorts by id and drops repeated ids, so that neither the number of processes, nor
    the order, nor the copies with which a distributed sampler fills up its last batch can change
    the result.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    real_features: list[Tensor]
    real_ids: list[Tensor]
    fake_features: list[Tensor]
    fake_ids: list[Tensor]

    def __init__(self, dim: int, **kwargs: Any) -> None:
        """Args: dim: D; others: those of torchmetrics."""
        super().__init__(**kwargs)
        self.dim = dim
        for side in ("real", "fake"):
            self.add_state(f"{side}_features", default=[], dist_reduce_fx="cat")
            self.add_state(f"{side}_ids", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, ids: Tensor, real: bool) -> None:
        """Take in features of clips.

        Args:
            features: (N, D), kept as float32.
            ids: (N,) int64, one for each clip of a side.
            real: which side they belong to.
        """
        if features.ndim != 2 or features.shape[1] != self.dim or ids.shape != features.shape[:1]:
            raise EvatokError(
                f"features are (N, {self.dim}) with ids (N,), not {tuple(features.shape)} with "
                f"{tuple(ids.shape)}"
            )
        side = "real" if real else "fake"
        features = features.detach().float()
        check_finite(features, f"the {side} side", ids)
        getattr(self, f"{side}_features").append(features)
        getattr(self, f"{side}_ids").append(ids.detach().long())

    @abstractmethod
    def score(self, real: Tensor, fake: Tensor) -> Any:
        """Score of two sets (N, D) float32, each in order of its ids."""

    def compute(self) -> Any:
        """The score of all that was seen, by all processes."""
        sides = []
        for side in ("real", "fake"):
            features, ids = self._joined(side)
            sides.append(in_order(features.cpu(), ids.cpu()))
        return self.score(*sides)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather; a process that has seen nothing takes part with matrices of no rows."""
        if not self._is_synced:
            for side in ("real", "fake"):
                features, ids = self._joined(side)
                setattr(self, f"{side}_features", [features])
                setattr(self, f"{side}_ids", [ids])
        super().sync(*args, **kwargs)

    def set_dtype(self, dst_type: Any) -> FeatureMetric:
        """Refused: half precision would spoil the result without a word."""
        raise EvatokError(f"features are kept as float32; {dst_type} is not possible")

    def _joined(self, side: str) -> tuple[Tensor, Tensor]:
        """All features (N, D) and ids (N,) of a side; a synced state is a tensor, not a list."""
        features = getattr(self, f"{side}_features")
        ids = getattr(self, f"{side}_ids")
        if isinstance(features, Tensor):
            return features, ids
        nothing = torch.zeros(0, self.dim, device=self.device)
        return torch.cat([nothing, *features]), torch.cat([nothing[:, 0].long(), *ids])


class FeatureSets(FeatureMetric):
    """The sets themselves: gathered, in order of their ids, to be scored by any function."""

    def score(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they are, (N, D) and (M, D) float32."""
        return real, fake


class FrechetDistance(FeatureMetric):
    """Fréchet distance as a metric that survives sharding, bit for bit; see `FeatureMetric`."""

    def __init__(self, dim: int, biased: bool = True, **kwargs: Any) -> None:
        """Args: dim: D; biased: as in `frechet_distance`; others: those of torchmetrics."""
        super().__init__(dim, **kwargs)
        self.biased = biased

    def score(self, real: Tensor, fake: Tensor) -> Tensor:
        """The distance, float64 scalar."""
        distance = frechet_distance(real, fake, biased=self.biased)
        return torch.tensor(distance, dtype=torch.float64)


class KernelDistance(FeatureMetric):
    """KVD as a metric; see `FeatureMetric`."""

    def score(self, real: Tensor, fake: Tensor) -> Tensor:
        """KVD, float64 scalar."""
        return torch.tensor(kernel_distance(real, fake), dtype=torch.float64)


class JediDistance(FeatureMetric):
    """JEDi's distance of features as a metric; see `FeatureMetric`."""

    def score(self, real: Tensor, fake: Tensor) -> Tensor:
        """100 MMD², float64 scalar."""
        return torch.tensor(jedi_distance(real, fake), dtype=torch.float64)


class CoverageMetric(FeatureMetric):
    """`coverage` as a metric; see `FeatureMetric`."""

    def __init__(self, dim: int, k: int = 5, k_precision: int = 3, **kwargs: Any) -> None:
        """Args: dim: D; k, k_precision: as in `coverage`; others: those of torchmetrics."""
        super().__init__(dim, **kwargs)
        self.k, self.k_precision = k, k_precision

    def score(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Precision, recall, density and coverage, float64 scalars."""
        values = coverage(real, fake, self.k, self.k_precision)
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in values._asdict().items()}
