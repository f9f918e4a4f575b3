"""The protocol of feature networks, and checksums of their weights.

A network maps clips to vectors. Two distances can be compared only when they were taken with the
same network, so each one has a name, which stands in every score (`fvd[i3d]`), and a checksum of
its weights, which goes into every report.

Shape letters: B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.processes.threads import side_by_side


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


class OneByOne(ABC):
    """Base of this project's feature networks: checks clips and computes each alone.

    Attributes:
        name: see `FeatureNetwork`.
        dim: D.
        checksum: see `FeatureNetwork`.
        device: where the weights lie.
        fewest: frames that a clip must have.
    """

    name: str
    dim: int
    checksum: str
    device: torch.device
    fewest = 9

    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, D) float32, on the CPU, of clips (B, 3, F, H, W) in [-1, 1]."""
        check_clips(clips)
        self.check_length(clips.shape[2])
        if self.device.type == "cpu":
            return one_by_one(self._exact, clips, self.dim)
        return self._exact(clips)

    def check_length(self, frames: int) -> None:
        """Refuse clips of so many frames.

        Raises:
            EvatokError: they are too few.
        """
        if frames < self.fewest:
            raise EvatokError(
                f"clips of {frames} frames: {self.name} needs {self.fewest} or more; longer clips "
                "(--frames) repeat the last frame of a shorter video"
            )

    @torch.no_grad()
    def _exact(self, clips: Tensor) -> Tensor:
        with exact_float32(self.device):
            return self.features(clips.to(self.device, torch.float32)).cpu()

    @abstractmethod
    def features(self, clips: Tensor) -> Tensor:
        """Features (B, D) of clips (B, 3, F, H, W) float32 on the network's device."""


def check_clips(clips: Tensor) -> None:
    """Refuse what is not floats (B, 3, F, H, W)."""
    if clips.ndim != 5 or clips.shape[1] != 3 or not clips.is_floating_point():
        raise EvatokError(
            f"clips must be floats of shape (B, 3, F, H, W), not {clips.dtype} "
            f"of {tuple(clips.shape)}"
        )


def resize_frames(clips: Tensor, size: int, *, antialias: bool) -> Tensor:
    """Resize every frame: (B, 3, F, H, W) → (B, 3, F, size, size).

    Bilinear, half-pixel centres (`align_corners=False`), the whole frame whatever its aspect, range
    untouched; frames of this size pass through as they are.
    """
    if tuple(clips.shape[-2:]) == (size, size):
        return clips
    frames = clips.transpose(1, 2).flatten(0, 1)  # (B F, 3, H, W)
    frames = F.interpolate(
        frames, (size, size), mode="bilinear", align_corners=False, antialias=antialias
    )
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)


def legacy_resize(clips: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 did it: target pixel i looks at i · scale, corner to corner.

    Args:
        clips: (B, 3, F, H, W).
        size: side of the result.

    Returns:
        (B, 3, F, size, size).
    """
    for axis in (-2, -1):
        length = clips.shape[axis]
        place = torch.arange(size, dtype=torch.float64) * (length / size)
        low = place.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (place - low).to(clips.dtype)
        if axis == -2:
            share = share[:, None]
        first, second = clips.index_select(axis, low), clips.index_select(axis, high)
        clips = first + (second - first) * share
    return clips


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Inside, convolutions run in float32 whatever autocast says, without TF32."""
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with (
        torch.autocast(device.type, enabled=False),
        exact if device.type == "cuda" else nullcontext(),
    ):
        yield


def one_by_one(compute: Callable[[Tensor], Tensor], clips: Tensor, dim: int) -> Tensor:
    """Vectors of clips on a CPU, each by one thread: the same bits in any batch, on any machine
    with these instructions, by any number of threads and processes.

    Args:
        compute: (1, 3, F, H, W) → (1, D), called in several threads; sets `torch.no_grad` itself.
        clips: (B, 3, F, H, W), B ≥ 0.
        dim: D.

    Returns:
        (B, D) float32.
    """
    rows = side_by_side(compute, clips.split(1)) if len(clips) else []
    return torch.cat([torch.zeros(0, dim), *rows])


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
