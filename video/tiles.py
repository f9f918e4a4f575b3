"""Pictures of any size as overlapping tiles, and back.

A picture that is larger than a model is covered by tiles of the model's size; neighbours share at
least `overlap` pixels, where the reconstruction fades from one into the other. A smaller one is
padded by its border and cut back.

Shape letters: F frames, H W pixels, R C those of a tile, N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from video.clips import Size, sides


def tile_starts(length: int, size: int, overlap: int) -> tuple[int, ...]:
    """Offsets of tiles along one side: the fewest that share `overlap` pixels, evenly spaced.

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
        size: of a tile, the side of a square or (R, C).
        overlap: least number of pixels that neighbours share.
    """

    height: int
    width: int
    size: Size
    overlap: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.tile) < 1:
            raise EvatokError(f"a picture of {self.height} × {self.width} has no tiles")
        side = min(self.tile)
        if not 0 <= self.overlap <= side // 2:
            raise EvatokError(
                f"an overlap of {self.overlap} pixels is outside [0, {side // 2}], "
                f"half a tile of {side}"
            )

    @property
    def tile(self) -> tuple[int, int]:
        """R and C, height and width of a tile."""
        return sides(self.size)

    @cached_property
    def _starts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tops and lefts of the tiles."""
        rows, columns = self.tile
        return (
            tile_starts(self.height, rows, self.overlap),
            tile_starts(self.width, columns, self.overlap),
        )

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """(top, left) of the N tiles."""
        tops, lefts = self._starts
        return tuple((top, left) for top in tops for left in lefts)

    def __len__(self) -> int:
        tops, lefts = self._starts
        return len(tops) * len(lefts)

    def cut(self, frames: Tensor) -> Tensor:
        """Frames (F, H, W, 3) uint8 → tiles (N, F, R, C, 3) uint8; small pictures are padded."""
        rows, columns = self.tile
        below, right = max(0, rows - self.height), max(0, columns - self.width)
        if below or right:
            planes = frames.permute(3, 0, 1, 2).float()  # (3, F, H, W): pads the last two axes
            planes = F.pad(planes, (0, right, 0, below), mode="replicate")
            frames = planes.to(torch.uint8).permute(1, 2, 3, 0)
        return torch.stack([frames[:, t : t + rows, x : x + columns] for t, x in self.corners])

    @cached_property
    def _weights(self) -> Tensor:
        """(N, R, C, 1) float32: how much each tile counts at its pixels; sums to 1 everywhere."""
        rows, columns = self.tile
        tops, lefts = self._starts
        ramps = _ramps(tops, rows)[:, None, :, None] * _ramps(lefts, columns)[:, None, :]
        weights = ramps.flatten(0, 1)[..., None]  # (N, R, C, 1)
        total = torch.zeros(max(self.height, rows), max(self.width, columns), 1)
        for weight, (top, left) in zip(weights, self.corners, strict=True):
            total[top : top + rows, left : left + columns] += weight
        return torch.stack(
            [
                weight / total[top : top + rows, left : left + columns]
                for weight, (top, left) in zip(weights, self.corners, strict=True)
            ]
        )

    def blend(self, tiles: Tensor) -> Tensor:
        """Tiles (N, F, R, C, 3) of floats in [0, 255] → frames (F, H, W, 3) uint8."""
        if len(self) == 1:
            picture = tiles[0]
        else:
            rows, columns = self.tile
            shape = (tiles.shape[1], max(self.height, rows), max(self.width, columns), 3)
            picture = torch.zeros(shape)
            weighted = tiles * self._weights[:, None]
            for tile, (top, left) in zip(weighted, self.corners, strict=True):
                picture[:, top : top + rows, left : left + columns] += tile
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
