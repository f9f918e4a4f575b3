"""A perceptual distance by its name."""

from __future__ import annotations

from pathlib import Path

from evaluation.perceptual.distance import PerceptualDistance, PerceptualName
from evaluation.perceptual.efficientnet import load_efficientnet
from evaluation.perceptual.lpips import load_lpips
from evatok.core.errors import EvatokError


def load_perceptual(name: PerceptualName, path: str | Path | None = None) -> PerceptualDistance:
    """Return the distance of that name, ready to be called.

    Args:
        name: see the head of `evaluation.perceptual.distance`.
        path: its network's weights, instead of those in the cache.

    Raises:
        EvatokError: there is no such distance, or the weights are not the expected ones.
        FileNotFoundError: the weights are not here; the message says how to get them.
    """
    if name == "lpips":
        return load_lpips(path)
    if name == "efficientnet-lite0":
        return load_efficientnet(path)
    raise EvatokError(f"no perceptual distance {name!r}; there are lpips, efficientnet-lite0")
