"""Four ways to spoil clips, each in growing strength: does a distance rise with what is wrong?

Blur takes detail away, noise puts some on top; both leave the motion alone. Shuffled and frozen
frames leave every frame as it was and spoil only the motion. Whatever is drawn at random is drawn
alike for every strength, so a stronger damage is the same damage, further on.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError


def blur(clips: Tensor, sigma: float) -> Tensor:
    """Every frame under a Gaussian of `sigma` pixels, cut at 3 σ; the border is repeated."""
    radius = max(round(3 * sigma), 1)
    places = torch.arange(-radius, radius + 1, dtype=clips.dtype)
    kernel = (-places.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    frames = clips.transpose(1, 2).flatten(0, 2)[:, None]  # (B F 3, 1, H, W)
    frames = F.pad(frames, (radius,) * 4, mode="replicate")
    frames = F.conv2d(F.conv2d(frames, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return frames[:, 0].unflatten(0, (len(clips), clips.shape[2], 3)).transpose(1, 2)


def noise(clips: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Plus normal noise of `sigma` on the range [-1, 1], new in each frame; clamped."""
    generator = torch.Generator().manual_seed(seed)
    return (clips + sigma * torch.randn(clips.shape, generator=generator)).clamp(-1, 1)


def shuffle(clips: Tensor, count: float, seed: int = 0) -> Tensor:
    """`count` frames of each clip, at random places, each put at the next one's place."""
    generator = torch.Generator().manual_seed(seed)
    out = clips.clone()
    for clip, source in zip(out, clips, strict=True):
        places = torch.randperm(clips.shape[2], generator=generator)[: int(count)]
        clip[:, places.roll(1)] = source[:, places]
    return out


def freeze(clips: Tensor, count: float) -> Tensor:
    """The last `count` frames of each clip replaced by the one before them."""
    last = clips.shape[2] - int(count)
    if last < 1:
        raise EvatokError(f"of {clips.shape[2]} frames at most {clips.shape[2] - 1} can be frozen")
    return clips[:, :, torch.arange(clips.shape[2]).clamp_max(last - 1)]


# Of each damage its strengths for clips of 16 frames of 64 pixels, weakest first, and their unit.
DAMAGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...], str]] = {
    "blur": (blur, (0.5, 1, 1.5, 2, 3), "σ in pixels"),
    "noise": (noise, (0.05, 0.1, 0.2, 0.4, 0.8), "σ on [-1, 1]"),
    "shuffle": (shuffle, (2, 4, 8, 12, 16), "frames moved"),
    "freeze": (freeze, (2, 4, 8, 12, 15), "frames frozen"),
}
