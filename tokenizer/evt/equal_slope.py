"""Spread a budget over a whole video by what every assignment really costs and gives.

The squared error of every candidate of every tile is known (`tokenizer.search.tree`). Of each tile
the candidates that no shorter one beats are kept; tokens are then given, over all tiles of the
video, where the next ones take away most error each (equal slope, on the convex hulls), and what
is left over where it still fits.

Shape letters: N tiles, T blocks, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.evt.budget import BudgetError


@dataclass(frozen=True)
class Frontier:
    """Candidates of one tile that no shorter one beats, by length.

    Attributes:
        lengths: (P,) int64 tokens, ascending.
        errors: (P,) float64 squared errors, descending.
        candidates: (P,) int64, their numbers.
        hull: places of those on the lower convex hull, ascending.
    """

    lengths: np.ndarray
    errors: np.ndarray
    candidates: np.ndarray
    hull: tuple[int, ...]


def frontier(lengths: np.ndarray, errors: np.ndarray) -> Frontier:
    """Keep what can be the best choice of a tile.

    Args:
        lengths: (M,) int64 tokens of the candidates.
        errors: (M,) float64 squared errors.
    """
    order = np.lexsort((errors, lengths))
    falling = np.minimum.accumulate(errors[order])
    kept = order[np.concatenate([[True], falling[1:] < falling[:-1]])]
    x, y = lengths[kept], errors[kept]
    hull: list[int] = []
    for place in range(len(kept)):
        while len(hull) > 1 and _slope(x, y, hull[-2], hull[-1]) <= _slope(x, y, hull[-1], place):
            hull.pop()
        hull.append(place)
    return Frontier(x, y, kept, tuple(hull))


def _slope(lengths: np.ndarray, errors: np.ndarray, start: int, end: int) -> float:
    """Error that a token takes away between two points."""
    return float(errors[start] - errors[end]) / float(lengths[end] - lengths[start])


def equal_slope(tiles: list[Frontier], tokens: float, error: float = 0.0) -> list[int]:
    """Choose a candidate for every tile.

    Args:
        tiles: N.
        tokens: that all together may take.
        error: sum of squared errors at which no more tokens are given.

    Returns:
        Numbers of N candidates.

    Raises:
        BudgetError: not even the shortest candidates fit.
    """
    least = sum(int(tile.lengths[0]) for tile in tiles)
    left = tokens - least
    if left < 0:
        raise BudgetError(tokens, least)
    chosen = [0] * len(tiles)
    missing = sum(float(tile.errors[0]) for tile in tiles) - error
    steps = [
        (-_slope(tile.lengths, tile.errors, start, end), number, start, end)
        for number, tile in enumerate(tiles)
        for start, end in zip(tile.hull, tile.hull[1:], strict=False)
    ]
    for _, number, start, end in sorted(steps):
        tile = tiles[number]
        price = int(tile.lengths[end] - tile.lengths[start])
        if missing <= 0:
            return _numbers(tiles, chosen)
        if chosen[number] == start and price <= left:
            chosen[number] = end
            left -= price
            missing -= float(tile.errors[start] - tile.errors[end])
    while missing > 0:  # what is left over: the largest gain that it pays for
        gain, number, place = max(
            (_largest_gain(tile, chosen[number], left, number) for number, tile in enumerate(tiles))
        )
        if gain <= 0:
            break
        left -= int(tiles[number].lengths[place] - tiles[number].lengths[chosen[number]])
        missing -= gain
        chosen[number] = place
    return _numbers(tiles, chosen)


def _largest_gain(tile: Frontier, chosen: int, left: float, number: int) -> tuple[float, int, int]:
    """Error that so many tokens more can take away, the tile's number and the place for it."""
    room = tile.lengths[chosen] + left
    place = int(np.searchsorted(tile.lengths, room, side="right")) - 1
    return float(tile.errors[chosen] - tile.errors[place]), number, place


def _numbers(tiles: list[Frontier], chosen: list[int]) -> list[int]:
    return [int(tile.candidates[place]) for tile, place in zip(tiles, chosen, strict=True)]


class PlannedAssigner:
    """Gives the tiles of a video what was planned for them, in the video's order."""

    def __init__(self, plan: Tensor) -> None:
        """Take (N, T) token counts of all tiles, clip by clip."""
        self.plan, self.place = plan, 0

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, T) token counts of the next clips (B, 3, F, S, S)."""
        rows = self.plan[self.place : self.place + len(clips)]
        if len(rows) < len(clips):
            raise EvatokError("the video has more frames than when it was measured: is it written?")
        self.place += len(clips)
        return rows.to(clips.device)
