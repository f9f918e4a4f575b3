"""Pictures of any size as overlapping square tiles, and back.

A picture that is larger than a model is covered by tiles of the model's size; neighbours share at
least `overlap` pixels, where the reconstruction fades from one into the other. A smaller one is
padded by its border and cut back.

Shape letters: F frames, H W pixels, S side of a tile, N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError


def tile_starts(length: int, size: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along one side: the fewest that share `overlap` pixels, evenly spread.

    Args:
        length: pixels of the picture, at least 1.
        size: pixels of a tile.
        overlap: least number of pixels that neighbours share, in [0, size / 2].
    """
    if length <= size:
        return (0,)
    steps = -(-(length - size) // (size - overlap))
    return tuple(round(index * (length - size) / steps) for index in range(steps + 1))


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a picture, row by row.

    Attributes:
        height: of the picture.
        width: of the picture.
        size: S, side of a tile.
        overlap: least number of pixels that neighbours share.
    """

    height: int
    width: int
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise EvatokError(f"a picture of {self.height} × {self.width} has no tiles")
        if not 0 <= self.overlap <= self.size // 2:
            raise EvatokError(
                f"an overlap of {self.overlap} pixels is outside [0, {self.size // 2}], "
                f"half a tile of {self.size}"
            )

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """(top, left) of the N tiles."""
        rows = tile_starts(self.height, self.size, self.overlap)
        columns = tile_starts(self.width, self.size, self.overlap)
        return tuple((top, left) for top in rows for left in columns)

    def __len__(self) -> int:
        return len(self.corners)

    def cut(self, frames: Tensor) -> Tensor:
        """Frames (F, H, W, 3) uint8 → tiles (N, F, S, S, 3) uint8; small pictures are padded."""
        below, right = max(0, self.size - self.height), max(0, self.size - self.width)
        if below or right:
            planes = frames.permute(3, 0, 1, 2).float()  # (3, F, H, W): pads the last two axes
            planes = F.pad(planes, (0, right, 0, below), mode="replicate")
            frames = planes.to(torch.uint8).permute(1, 2, 3, 0)
        size = self.size
        return torch.stack([frames[:, t : t + size, x : x + size] for t, x in self.corners])

    @cached_property
    def _weights(self) -> Tensor:
        """(N, S, S, 1) float32: how much each tile counts at its pixels; sums to 1 everywhere."""
        rows = tile_starts(self.height, self.size, self.overlap)
        columns = tile_starts(self.width, self.size, self.overlap)
        ramps = _ramps(rows, self.size)[:, None, :, None] * _ramps(columns, self.size)[:, None, :]
        weights = ramps.flatten(0, 1)[..., None]  # (N, S, S, 1)
        total = torch.zeros(max(self.height, self.size), max(self.width, self.size), 1)
        for weight, (top, left) in zip(weights, self.corners, strict=True):
            total[top : top + self.size, left : left + self.size] += weight
        return torch.stack(
            [
                weight / total[top : top + self.size, left : left + self.size]
                for weight, (top, left) in zip(weights, self.corners, strict=True)
            ]
        )

    def blend(self, tiles: Tensor) -> Tensor:
        """Tiles (N, F, S, S, 3) of floats in [0, 255] → frames (F, H, W, 3) uint8."""
        if len(self) == 1:
            picture = tiles[0]
        else:
            shape = (tiles.shape[1], max(self.height, self.size), max(self.width, self.size), 3)
            picture = torch.zeros(shape)
            weighted = tiles * self._weights[:, None]
            for tile, (top, left) in zip(weighted, self.corners, strict=True):
                picture[:, top : top + self.size, left : left + self.size] += tile
        frames = picture[:, : self.height, : self.width]
        return frames.round().clamp(0, 255).to(torch.uint8)


def _ramps(starts: tuple[int, ...], size: int) -> Tensor:
    """(n, S) float32: 1 inside each tile, falling linearly to its ends where it has neighbours."""
    ramps = torch.ones(len(starts), size)
    for index in range(len(starts) - 1):
        shared = starts[index] + size - starts[index + 1]
        if shared > 0:
            rising = (torch.arange(shared) + 0.5) / shared
            ramps[index, size - shared :] *= 1 - rising
            ramps[index + 1, :shared] *= rising
    return ramps
