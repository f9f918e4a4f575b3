"""Base of metrics of features, which keep features with the ids of their clips.

Shape letters: N vectors of a side, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evatok.core.extras import extra

with extra("evaluation"):
    from torchmetrics import Metric

from evatok.core.errors import EvatokError

SAME_CLIP = 1e-2  # features of one clip, computed twice, may differ by this share of their size


def check_finite(features: Tensor, what: str, ids: Tensor | None = None) -> None:
    bad = (~features.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        row = f"row {int(bad[0])}" if ids is None else f"id {int(ids[bad[0]])}"
        raise EvatokError(f"features of {what}: {row} is NaN or infinite ({len(bad)} such in all)")


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
            sides.append(_unique(features.cpu(), ids.cpu()))
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


def _unique(features: Tensor, ids: Tensor) -> Tensor:
    """Features (N', D) in order of ids, one row an id.

    Two copies of a clip can differ in their last bits, when batches or processors did. The one
    that is kept must not depend on the order, so it is the lexicographically smallest.
    """
    repeated = ids.unique(return_counts=True)
    again = torch.isin(ids, repeated[0][repeated[1] > 1])
    singles, copies = features[~again], features[again]
    names = ids[again]
    if len(copies):
        order = torch.from_numpy(np.lexsort((*copies.numpy().T[::-1], names.numpy())))
        copies, names = copies[order], names[order]
        starts = torch.cat([torch.ones(1, dtype=torch.bool), names[1:] != names[:-1]])
        kept = copies[starts][starts.cumsum(0) - 1]  # for each copy the one that is kept
        apart = (copies - kept).abs().amax(1) > SAME_CLIP * kept.abs().amax(1)
        if apart.any():
            raise EvatokError(
                f"id {int(names[apart][0])} was given to clips with different features; "
                "an id must belong to one clip of a side"
            )
        copies, names = copies[starts], names[starts]
    order = torch.cat([ids[~again], names]).argsort()
    return torch.cat([singles, copies])[order]
