"""Budgets spread by equal slope, against every choice there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from tokenizer.evt.equal_slope import Frontier, PlannedAssigner, equal_slope, frontier

LENGTHS = np.array([4, 8, 8, 16, 16, 32])


def tiles(count: int, seed: int) -> tuple[list[Frontier], np.ndarray]:
    """Frontiers of random tiles, and the errors of all of their candidates."""
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.5, 2, (count, 1)) / LENGTHS ** rng.uniform(0.2, 1, (count, 1))
    errors = errors * rng.uniform(0.8, 1.2, errors.shape)
    return [frontier(LENGTHS, row) for row in errors], errors


def spent(chosen: list[int]) -> int:
    return int(LENGTHS[chosen].sum())


def error_of(chosen: list[int], errors: np.ndarray) -> float:
    return float(errors[np.arange(len(chosen)), chosen].sum())


def test_a_frontier_keeps_what_no_shorter_candidate_beats() -> None:
    errors = np.array([5.0, 4.0, 3.0, 3.5, 2.9, 1.0])
    found = frontier(LENGTHS, errors)
    assert found.candidates.tolist() == [0, 2, 4, 5]
    assert found.lengths.tolist() == [4, 8, 16, 32]
    assert found.errors.tolist() == [5.0, 3.0, 2.9, 1.0]
    assert found.hull == (0, 1, 3)  # from 8 to 32 tokens, 16 take away less each


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_as_many_tokens_has_a_smaller_error(seed: int) -> None:
    found, errors = tiles(4, seed)
    every = [(spent(list(c)), error_of(list(c), errors)) for c in product(range(6), repeat=4)]
    for budget in range(16, 129, 4):
        chosen = equal_slope(found, budget)
        assert spent(chosen) <= budget
        best = min(error for tokens, error in every if tokens <= budget)
        # exact where the budget ends on the hulls, else within one step of them
        below = min(error for tokens, error in every if tokens <= max(16, budget - 24))
        assert best - 1e-12 <= error_of(chosen, errors) <= below + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_every_equal_budget_for_each_is_worse(seed: int) -> None:
    found, errors = tiles(40, seed)
    for limit in (8, 16):
        each = [int(np.where(limit >= LENGTHS, row, np.inf).argmin()) for row in errors]
        assert error_of(equal_slope(found, spent(each)), errors) < error_of(each, errors)


def test_an_error_is_reached_with_few_tokens() -> None:
    found, errors = tiles(30, 7)
    least, most = (sum(float(tile.errors[end]) for tile in found) for end in (-1, 0))
    for share in (0.0, 0.3, 0.8, 1.0):
        wanted = least + share * (most - least)
        chosen = equal_slope(found, float("inf"), wanted)
        assert error_of(chosen, errors) <= wanted + 1e-12
        if spent(chosen) - 32 >= 4 * 30:
            assert error_of(equal_slope(found, spent(chosen) - 32), errors) > wanted
    assert spent(equal_slope(found, float("inf"), most)) == 4 * 30


def test_budgets_below_the_shortest_are_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 11 tokens is below the 12"):
        equal_slope(tiles(3, 0)[0], 11)


def test_a_plan_is_dealt_out_in_order() -> None:
    plan = torch.arange(10).view(5, 2)
    assigner = PlannedAssigner(plan)
    clips = torch.zeros(3, 1)
    assert torch.equal(torch.cat([assigner(clips), assigner(clips[:2])]), plan)
    with pytest.raises(ValueError, match="more frames than when it was measured"):
        assigner(clips[:1])
