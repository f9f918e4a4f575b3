"""Feature networks by name."""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.features.base import FeatureNetwork

NETWORKS = ("nano", "i3d")


def load_features(
    name: str, path: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """The feature network of that name, ready to be called.

    Args:
        name: "nano" (shipped, for quick experiments and tests) or "i3d" (the network of the FVD
            literature, whose weights are fetched once).
        path: weights to use instead of the shipped or cached ones.
        device: where it runs.

    Raises:
        ValueError: there is no such network, or its weights are not the expected ones.
        FileNotFoundError: its weights are not here; the message says how to get them.
    """
    if name == "nano":
        from evaluation.features.nano import load_nano

        return load_nano(path, device)
    if name == "i3d":
        from evaluation.features.i3d import load_i3d

        return load_i3d(path, device)
    raise ValueError(f"no feature network {name!r}; there are {', '.join(NETWORKS)}")
