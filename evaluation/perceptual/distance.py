"""Distances between clips as a network sees them: what a tokenizer may be trained on.

| name | network | its distance |
| --- | --- | --- |
| `lpips` | VGG16 with learned linear weights | LPIPS (Zhang et al. 2018), version 0.1 |
| `efficientnet-lite0` | ImageNet's EfficientNet-Lite0 | the same form without learned weights |

The second needs only weights that can be had from the package index. It is no LPIPS, and its
values compare with nothing but themselves.

Shape letters: B batch, F frames, C channels, H W pixels, N frames of all clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from evatok.core.errors import EvatokError

PerceptualName = Literal["lpips", "efficientnet-lite0"]
FRAMES = 64  # that go through a network together where no gradient is asked for


class PerceptualDistance(Protocol):
    """Two clips to a number, 0 for equal ones, with weights that are fixed and named.

    It is no `nn.Module`: no state dict, optimiser or average of whoever uses it may hold its
    weights. They follow the clips to their device.
    """

    @property
    def name(self) -> str:
        """As in `evaluation.perceptual.distance.load`; the name under which values are reported."""
        ...

    @property
    def checksum(self) -> str:
        """sha256 in hex that identifies the weights."""
        ...

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) float32 of clips (B, 3, F, H, W) float in [−1, 1], means over frames.

        Gradients reach both. Under autocast the network's layers run in its dtype; norms,
        differences and means are always float32.
        """
        ...

    def prepare(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the distance to these clips, whose features are computed once.

        Args:
            y: (B, 3, F, H, W) float in [−1, 1].

        Returns:
            A function of clips (n · B, 3, F, H, W): distances (n · B,) float32, row r to clip
            r mod B, without gradients.
        """
        ...


class FeatureDistance:
    """Σ over depths of the mean over places of Σ over channels w (x̂ − ŷ)², x̂ of unit length.

    LPIPS's form (arXiv:1801.03924, equation 1).
    """

    def __init__(
        self,
        name: str,
        checksum: str,
        net: nn.Module,
        weights: Sequence[Tensor] | None = None,
        epsilon: float = 1e-8,
    ) -> None:
        """Freeze the network.

        Args:
            name: of the distance.
            checksum: of all its weights.
            net: frames (N, 3, H, W) in [−1, 1] to the features (N, C, H', W') of several depths.
            weights: (C,) ≥ 0 for each depth; None = 1 / number of depths.
            epsilon: added to the squared length of a feature vector.
        """
        self.name, self.checksum, self.epsilon = name, checksum, epsilon
        self._net = net.eval().requires_grad_(False)
        self._weights = None if weights is None else [w[:, None, None] for w in weights]
        self._device = torch.device("cpu")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """See `PerceptualDistance`."""
        if x.shape != y.shape or x.ndim != 5 or x.shape[1] != 3:
            raise EvatokError(
                f"clips must both be (B, 3, F, H, W), not {tuple(x.shape)} and {tuple(y.shape)}"
            )
        self._follow(x.device)
        rows, frames = x.shape[0], x.shape[2]
        a, b = (clips.transpose(1, 2).flatten(0, 1) for clips in (x, y))  # (N, 3, H, W)
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        size = len(a) if needs_grad else FRAMES
        parts = [self._frames(*pair) for pair in zip(a.split(size), b.split(size), strict=True)]
        return torch.cat(parts).view(rows, frames).mean(1)

    @torch.no_grad()
    def prepare(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """See `PerceptualDistance`. Holds every feature of the clips in memory, in float32."""
        self._follow(y.device)
        real = y.transpose(1, 2).flatten(0, 1)  # (B · F, 3, H, W)
        parts = [self._features(part) for part in real.split(FRAMES)]
        features = [torch.cat(depth) for depth in zip(*parts, strict=True)]

        @torch.no_grad()
        def distance(x: Tensor) -> Tensor:
            if len(x) % len(y) or x.shape[1:] != y.shape[1:]:
                raise EvatokError(
                    f"clips must be (n · {len(y)}, {', '.join(map(str, y.shape[1:]))}), "
                    f"not {tuple(x.shape)}"
                )
            made = x.transpose(1, 2).flatten(0, 1)
            numbers = torch.arange(len(made), device=x.device) % len(real)
            parts = [
                self._compare(self._features(part), [depth[which] for depth in features])
                for part, which in zip(made.split(FRAMES), numbers.split(FRAMES), strict=True)
            ]
            return torch.cat(parts).view(len(x), -1).mean(1)

        return distance

    def _follow(self, device: torch.device) -> None:
        if device != self._device:
            self._net.to(device)
            if self._weights is not None:
                self._weights = [w.to(device) for w in self._weights]
            self._device = device

    def _frames(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) of frames (N, 3, H, W)."""
        return self._compare(self._features(a), self._features(b))

    def _compare(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """(N,) of features (N, C, H', W') of several depths."""
        total = a[0].new_zeros(len(a[0]))
        for depth, (p, q) in enumerate(zip(a, b, strict=True)):
            square = (p - q).square()
            if self._weights is None:
                total = total + square.sum(1).mean((1, 2)) / len(a)
            else:
                total = total + (square * self._weights[depth]).sum(1).mean((1, 2))
        return total

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Float32 features of unit length, depth by depth.

        Those of real clips get no gradient: what backward would need of them, half of the memory
        of a loss, is not kept.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and frames.requires_grad):
            return [self._unit(feature) for feature in self._net(frames)]

    def _unit(self, feature: Tensor) -> Tensor:
        feature = feature.float()
        return feature / (feature.square().sum(1, keepdim=True) + self.epsilon).sqrt()
