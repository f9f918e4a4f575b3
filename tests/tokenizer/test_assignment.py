"""Levels, candidates and grids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.assignment import Levels, grid, parse_assignment

PAPER = Levels((32, 64, 128, 256, 512))


def test_the_paper_has_625_candidates_in_order() -> None:
    candidates = PAPER.candidates(4)
    assert candidates.shape == (625, 4)
    assert candidates[0].tolist() == [32] * 4 and candidates[-1].tolist() == [512] * 4
    assert candidates[1].tolist() == [32, 32, 32, 64]
    assert torch.equal(PAPER.index(candidates), torch.arange(625))


@given(st.lists(st.sampled_from(PAPER.values), min_size=4, max_size=4))
def test_index_finds_every_assignment(counts: list[int]) -> None:
    index = PAPER.index(torch.tensor(counts))
    assert PAPER.candidates(4)[index].tolist() == counts


def test_prefix_selects_those_that_begin_with_it() -> None:
    allowed = PAPER.with_prefix(4, (512, 128))
    assert allowed.sum() == 25
    assert (PAPER.candidates(4)[allowed][:, :2] == torch.tensor([512, 128])).all()
    assert PAPER.with_prefix(4, ()).all()


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [(32, (8, 4)), (64, (8, 8)), (128, (16, 8)), (256, (16, 16)), (512, (32, 16))],
)
def test_grids_of_the_paper(tokens: int, shape: tuple[int, int]) -> None:
    assert grid(tokens, 16, 16) == shape


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[48\] are not levels"):
        PAPER.index(torch.tensor([32, 48, 32, 32]))
    with pytest.raises(ValueError, match="ascending"):
        Levels((8, 4))
    with pytest.raises(ValueError, match="longer than"):
        PAPER.with_prefix(2, (32, 32, 32))
    with pytest.raises(ValueError, match="has 2 levels; a clip has 4"):
        parse_assignment("32,64", PAPER, 4)
    with pytest.raises(ValueError, match="comma-separated"):
        parse_assignment("many", PAPER, 4)
    assert parse_assignment("64", PAPER, 4) == (64,) * 4
