"""Distances between sets of videos."""

from __future__ import annotations

from pathlib import Path

from evaluation.scoring.clips import Cut
from evaluation.scoring.score import score_folders
from evaluation.scoring.statistics import is_statistics, score_statistics
from evatok.api.arguments import settings_of, whole
from evatok.core.compute.devices import resolve_device
from evatok.core.errors import EvatokError
from evatok.hub import feature_networks
from video.clips import WindowRule, window_rule


def fvd(
    real: Path | str,
    fake: Path | str,
    features: str = "nano",
    *,
    num_frames: int = 16,
    size: int = 128,
    window: WindowRule = "first",
    count: int | None = None,
    seed: int = 42,
    device: str = "auto",
) -> float:
    """Return the Fréchet video distance between two sets of videos; 0 for equal ones.

    It is that of `evatok fvd`. Two values compare only if all arguments and the number of videos
    are the same (docs/evaluation.md).

    Args:
        real: folder of videos or of folders of frames, a video, .npy, .npz or .pt; or a file of
            `evatok statistics`.
        fake: likewise.
        features: the network: nano (shipped), i3d (of the literature, fetched once) or
            another of `evaluation.encoders.load.load_features`.
        num_frames: of a clip; of a shorter video the last frame is repeated.
        size: pixels; the short side is resized to it, then the centre cut out.
        window: "first", "random", "all", or so many of them a video: `video.clips.WindowRule`.
        count: clips drawn on each side; None: all.
        seed: of the draw.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        EvatokError: not one network.
        EvatokError: fewer than two clips on a side, statistics of another network or cut, or a
            number out of range.
    """
    networks = feature_networks(features, "nano", device=resolve_device(device))
    if len(networks) != 1:
        raise EvatokError(f"features {features!r}: give one network, such as 'i3d'")
    cut = settings_of(
        Cut,
        num_frames=num_frames,
        size=size,
        window=window_rule(str(window)),
        count=None if count is None else whole("count", count, 2),
        seed=whole("seed", seed, 0),
    )
    if is_statistics(Path(real)) or is_statistics(Path(fake)):
        result = score_statistics(Path(real), Path(fake), networks[0], cut=cut)
    else:
        result = score_folders(real, fake, networks, cut=cut)
    return result[f"fvd[{networks[0].name}]"]
