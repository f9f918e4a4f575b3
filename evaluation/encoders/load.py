"""Feature networks and frozen encoders by name."""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.encoders.base import FeatureNetwork
from evaluation.encoders.encoder import EncoderConfig, VideoEncoder
from evatok.core.errors import EvatokError
from evatok.core.suggest import did_you_mean

NETWORKS = ("nano", "games", "i3d", "i3d-torchscript:FILE", "i3d-tats:FILE", "videomae-g:FILE")


def load_features(
    name: str,
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    *,
    trust: bool = False,
) -> FeatureNetwork:
    """The feature network of that name, ready to be called.

    Args:
        name: "nano" or "games" (shipped, for quick experiments and tests) or "i3d" (the network of
            the FVD literature, whose weights are fetched once); "i3d-torchscript:FILE",
            "i3d-tats:FILE" and "videomae-g:FILE" are read from files of other projects.
        path: weights to use instead of the shipped or cached ones, or of those behind the colon.
        device: where it runs.
        trust: run a TorchScript program whose checksum is not the published one.

    Raises:
        EvatokError: there is no such network, or its weights are not the expected ones.
        FileNotFoundError: its weights are not here; the message says how to get them.
    """
    name, _, file = name.partition(":")
    path = path if path is not None else file or None
    if name in ("nano", "games"):
        from evaluation.encoders.nano import WEIGHTS, load_nano

        return load_nano(path if path is not None else WEIGHTS / name / "features", device)
    if name == "i3d":
        from evaluation.encoders.i3d.network import load_i3d

        return load_i3d(path, device)
    if name == "i3d-torchscript":
        from evaluation.encoders.i3d.torchscript import load_i3d_torchscript

        return load_i3d_torchscript(path, device, trust=trust)
    if name == "i3d-tats":
        from evaluation.encoders.i3d.tats import load_i3d_tats

        return load_i3d_tats(path, device)
    if name == "videomae-g":
        from evaluation.encoders.videomae_g import load_videomae_g

        return load_videomae_g(path, device)
    raise EvatokError(
        f"no feature network {name!r}; there are {', '.join(NETWORKS)}"
        f"{did_you_mean(name, NETWORKS)}"
    )


def load_encoder(config: EncoderConfig) -> VideoEncoder:
    """The frozen encoder that the settings name, ready to be called.

    Raises:
        EvatokError: its weights are not the expected ones, or it does not take that size.
        FileNotFoundError: its weights are not here; the message says how to get them.
        ImportError: it needs a package that is not installed.
    """
    if config.encoder == "i3d":
        from evaluation.encoders.i3d.network import load_i3d_encoder

        return load_i3d_encoder(config.path, config.size)
    if config.size is not None:
        raise EvatokError(f"encoder {config.encoder} has a size of its own: leave `size` out")
    if config.encoder == "vjepa2-l":
        from evaluation.encoders.vjepa2 import load_vjepa2

        return load_vjepa2(config.path)
    from evaluation.encoders.videomae import load_videomae, load_videomae_nano

    return (load_videomae_nano if config.encoder == "videomae-nano" else load_videomae)(config.path)
