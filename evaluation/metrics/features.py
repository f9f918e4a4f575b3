"""Features as distances take them: finite, in order of their clips' ids, one row a clip.

Shape letters: N vectors of a set, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evatok.core.errors import EvatokError

SAME_CLIP = 1e-2  # features of one clip, computed twice, may differ by this share of their size


def check_finite(features: Tensor, what: str, ids: Tensor | None = None) -> None:
    """Refuse features (N, D) of which one is NaN or infinite.

    Args:
        features: of a set.
        what: the set, for the message.
        ids: (N,) of the rows, to name the first bad one by.

    Raises:
        EvatokError: one is.
    """
    bad = (~features.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        row = f"row {int(bad[0])}" if ids is None else f"id {int(ids[bad[0]])}"
        raise EvatokError(f"features of {what}: {row} is NaN or infinite ({len(bad)} such in all)")


def in_order(features: Tensor, ids: Tensor) -> Tensor:
    """Rows in order of their ids, one row an id.

    Two copies of a clip can differ in their last bits, when batches or processors did. The one
    that is kept must not depend on the order, so it is the lexicographically smallest.

    Args:
        features: (N, D) float32, on the CPU.
        ids: (N,) int64.

    Returns:
        (N', D) float32, N' ≤ N.

    Raises:
        EvatokError: an id came with different features.
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
