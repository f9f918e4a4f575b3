"""What a feature network is, and where one comes from.

A network maps clips to vectors. Two distances can be compared only when they were taken with the
same network, so each one has a name, which stands in every score (`fvd[i3d]`), and a checksum of
its weights, which goes into every report.

Shape letters: B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

NETWORKS = ("nano", "i3d")


class FeatureNetwork(Protocol):
    """Clips to feature vectors, with weights that are fixed and named."""

    @property
    def name(self) -> str:
        """Stands in square brackets behind every score."""
        ...

    @property
    def dim(self) -> int:
        """D, the length of a feature vector."""
        ...

    @property
    def checksum(self) -> str:
        """sha256 in hex that identifies the weights."""
        ...

    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, D) float32 of clips (B, 3, F, H, W) float32 in [-1, 1].

        The network does its own resizing and runs in float32 whatever autocast says; a clip's
        vector does not depend on the rest of its batch by more than rounding.
        """
        ...


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


def cache_dir() -> Path:
    """Folder of fetched weights: `EVATOK_CACHE`, or ~/.cache/evatok."""
    chosen = os.environ.get("EVATOK_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "evatok"


def weights_checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 in hex over names, types, shapes and bytes of tensors, in order of their names.

    Unlike the checksum of a file it does not depend on how a file orders its header.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
