"""A toy `VideoEncoder`: three fixed random layers, to check what is done with its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ToyEncoder:
    name = "toy"
    checksum = "0" * 64
    num_layers = 3

    def __init__(self, cells: tuple[int, int, int] = (6, 4, 4), width: int = 10) -> None:
        generator = torch.Generator().manual_seed(7)
        sizes = [(3, width), (width, width), (width, width)]
        self.net = nn.ModuleList(nn.Linear(*size) for size in sizes).requires_grad_(False)
        for parameter in self.net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.cells, self.channels, self.calls = cells, width, 0

    def grid(self, layer: int, num_frames: int) -> tuple[int, int, int]:
        return self.cells

    def width(self, layer: int) -> int:
        return self.channels

    def hidden(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        self.calls += 1
        x = nn.functional.adaptive_avg_pool3d(clips.float(), self.cells).movedim(1, -1)
        out = []
        for layer in self.net:
            x = layer(x).sin()
            out.append(x)
        return [out[layer - 1] for layer in layers]
