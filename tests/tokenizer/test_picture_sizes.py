"""Pictures that are not square: every network, the search and a token file's tiles take them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.tokenizer.conftest import toy
from tokenizer.losses.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from tokenizer.model import TokenizerConfig
from tokenizer.router import Router, RouterConfig
from tokenizer.search.candidates import candidate_errors
from video.tiles import TileGrid

SIZE = (16, 24)  # height, width


def wide_clips(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 12, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_tokenizer_keeps_rows_and_columns_apart() -> None:
    model, clips = toy(size=SIZE), wide_clips()
    assert model.cells == (2, 3)
    assert torch.equal(model.pixels(model.patches(clips)), clips)
    assignment = torch.tensor([[1, 8, 2], [4, 4, 4]])
    tokens = model.encode(clips, assignment)
    assert model.decode(tokens).shape == clips.shape
    with pytest.raises(ValueError, match=r"are not \(B, 3, F, 16, 24\)"):
        model.encode(clips.transpose(3, 4), assignment)


def test_search_tree_is_exact() -> None:
    model, clips = toy(size=SIZE), wide_clips()
    tree, brute = (candidate_errors(model, clips, method) for method in ("tree", "brute"))
    torch.testing.assert_close(tree, brute)


def test_router_and_discriminator_take_them() -> None:
    clips = wide_clips()
    router = Router(RouterConfig(levels=(1, 2), num_frames=12, size=SIZE, width=16, layers=1,
                                 heads=2))  # fmt: skip
    assert router(clips).shape == (2, 8)
    judge = PatchDiscriminator(PatchDiscriminatorConfig(width=16, layers=1, heads=2), 12, SIZE)
    assert judge(clips).shape == (2, 3 * 2 * 3)


def test_two_equal_sides_are_one_number() -> None:
    settings = toy().config.model_dump(mode="json")
    same = TokenizerConfig.model_validate(settings | {"size": [16, 16]})
    assert same.size == 16 and same.model_dump(mode="json")["size"] == 16
    wide = TokenizerConfig.model_validate(settings | {"size": list(SIZE)})
    assert wide.size == SIZE and wide.model_dump(mode="json")["size"] == [16, 24]
    with pytest.raises(ValidationError, match="one number, or"):
        TokenizerConfig.model_validate(settings | {"size": [16, 24, 3]})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        TokenizerConfig.model_validate(settings | {"size": [16, 0]})


def test_blend_of_the_cut_is_the_picture() -> None:
    frames = torch.randint(0, 256, (2, 37, 50, 3), dtype=torch.uint8)
    grid = TileGrid(37, 50, SIZE, 4)
    tiles = grid.cut(frames)
    assert tiles.shape == (len(grid), 2, *SIZE, 3)
    assert torch.equal(grid.blend(tiles.float()), frames)
