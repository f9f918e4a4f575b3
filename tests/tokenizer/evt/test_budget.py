"""Budgets of whole videos: met to the last tokens that there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.evt.budget import BudgetAssigner, enclose
from tokenizer.evt.codec import in_batches

LEVELS = torch.tensor([4, 8, 16, 32, 64])


def price(clips: Tensor) -> Tensor:
    """(N,) how hard each clip is, written in its pixels."""
    return clips[:, 0, 0, 0, 0]


def assign(clips: Tensor, w_q: float) -> Tensor:
    """Two blocks; harder clips get more, all of them in jumps."""
    rank = (price(clips) * w_q * 2).long().clamp(0, 4)
    return LEVELS[rank][:, None].expand(-1, 2)


def fill(clip: Tensor, w_q: float, tokens: int) -> Tensor:
    """The most tokens that two equal or neighbouring levels can take."""
    pairs = torch.cartesian_prod(LEVELS, LEVELS)
    sums = pairs.sum(1)
    return pairs[sums.masked_fill(sums > tokens, -1).argmax()][None]


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("part", [0.1, 0.37, 0.5, 0.93])
def test_a_budget_is_spent_to_the_last_step(count: int, part: float) -> None:
    draw = torch.Generator().manual_seed(count)
    clips = torch.rand(count, 1, 1, 1, 1, generator=draw) + 0.5
    least, most = (int(assign(clips, w_q).sum()) for w_q in (0.0, 2.0))
    budget = least + part * (most - least)
    chooser = BudgetAssigner(assign, fill, *enclose(lambda: [clips], assign, budget), budget)
    spent = sum(int(chooser(batch).sum()) for batch in clips.split(3))
    assert budget - 32 <= spent <= budget  # sums of two levels lie up to 32 apart


def test_clips_are_cut_into_batches_in_their_order() -> None:
    rows = torch.arange(40.0)[:, None]
    for sizes in ([40], [7, 7, 7, 7, 7, 5], [1] * 40, [13, 0, 27]):
        for count in (1, 3, 7, 16, 50):
            batches = list(in_batches(rows.split(sizes), count))
            assert torch.equal(torch.cat(batches), rows)
            assert [len(batch) for batch in batches] == [len(x) for x in rows.split(count)]
