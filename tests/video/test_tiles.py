"""Pictures as tiles and back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video.tiles import TileGrid, tile_starts


@given(st.integers(1, 400), st.integers(2, 64), st.data())
def test_tiles_cover_a_side_with_their_overlap(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    starts = tile_starts(length, size, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, length - size)
    for a, b in pairwise(starts):
        assert 0 < b - a <= size - overlap
    if len(starts) > 1:  # one fewer would not do
        assert (len(starts) - 2) * (size - overlap) + size < length


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 8))
def test_blend_of_the_cut_is_the_picture(height: int, width: int, overlap: int) -> None:
    grid = TileGrid(height, width, 16, overlap)
    frames = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    tiles = grid.cut(frames)
    assert tiles.shape == (len(grid), 2, 16, 16, 3)
    assert torch.equal(grid.blend(tiles.float()), frames)


def test_seams_fade() -> None:
    """Where two tiles disagree, no pixel steps by more than their difference over the overlap."""
    grid = TileGrid(16, 28, 16, 4)
    tiles = torch.zeros(2, 1, 16, 16, 3)
    tiles[1] = 100
    row = grid.blend(tiles)[0, 0, :, 0].int()
    assert row[0] == 0 and row[-1] == 100 and int(row.diff().max()) <= 26
    assert torch.equal(row, row.sort().values)


def test_small_pictures_are_padded_by_their_border() -> None:
    frames = torch.arange(6, dtype=torch.uint8).view(1, 2, 3, 1).expand(-1, -1, -1, 3)
    tile = TileGrid(2, 3, 4, 0).cut(frames)[0, 0, :, :, 0]
    assert tile.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]


def test_overlap_beyond_half_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap of 9"):
        TileGrid(20, 20, 16, 9)
