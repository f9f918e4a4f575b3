"""Spread a budget over a whole video: every block and tile at the same exchange rate.

A router that takes w_q as an input gives each clip the assignment that is best at that price of a
token. One w_q for all clips is therefore the best way to spend their sum. Three passes over the
video find the two neighbouring values whose totals enclose the budget; between them, clips are
dealt out so that the running total keeps to it.

Shape letters: N tiles, T blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from evatok.core.errors import EvatokError

GRID = (0.0, 0.5, 1.0, 1.5, 2.0)  # of w_q: the first pass
PARTS = 4  # into which each later pass divides the interval that holds the budget
ROUNDS = 2  # of later passes

# tiles (N, 3, F, S, S), w_q → (N, T) token counts
AssignAt = Callable[[Tensor, float], Tensor]
# one tile (1, 3, F, S, S), w_q, tokens → (1, T) of as many tokens as there can be, but no more
Fill = Callable[[Tensor, float, int], Tensor]


class BudgetError(EvatokError):
    """A budget below the shortest assignments.

    Attributes:
        least: their tokens.
    """

    def __init__(self, budget: float, least: int) -> None:
        super().__init__(
            f"a budget of {budget:.0f} tokens is below the {least} that the video takes at least: "
            "allow more, or encode a shorter part of it"
        )
        self.least = least


def curve(clips: Iterable[Tensor], assign: AssignAt, grid: Sequence[float]) -> list[int]:
    """Tokens of a whole video at each w_q of a grid; memory does not grow with its length.

    Args:
        clips: batches of tiles (N, 3, F, S, S) in [−1, 1].
        assign: of a router with w_q as an input.
        grid: values of w_q, ascending.
    """
    totals = [0] * len(grid)
    for batch in clips:
        for place, w_q in enumerate(grid):
            totals[place] += int(assign(batch, w_q).sum())
    return totals


def enclose(
    passes: Callable[[], Iterable[Tensor]], assign: AssignAt, budget: float
) -> tuple[tuple[float, int], tuple[float, int]]:
    """The two values of w_q, each with its total, between which a budget lies.

    Args:
        passes: begins a pass over the video's tiles.
        assign: as for `curve`.
        budget: tokens that the video may take.

    Returns:
        (w_q, tokens) at or under the budget, and above it; twice the same where all fit.

    Raises:
        BudgetError: not even the shortest assignments fit.
    """
    totals = curve(passes(), assign, GRID)
    if min(totals) > budget:
        raise BudgetError(budget, min(totals))
    low, high = _bracket(GRID, totals, budget)
    for _ in range(ROUNDS):
        if low == high:
            break
        step = (high[0] - low[0]) / PARTS
        inner = [low[0] + step * part for part in range(1, PARTS)]
        found = curve(passes(), assign, inner)
        low, high = _bracket([low[0], *inner, high[0]], [low[1], *found, high[1]], budget)
    return low, high


def _bracket(
    grid: Sequence[float], totals: Sequence[int], budget: float
) -> tuple[tuple[float, int], tuple[float, int]]:
    pairs = list(zip(grid, totals, strict=True))
    low = max((pair for pair in pairs if pair[1] <= budget), key=lambda pair: (pair[1], pair[0]))
    above = [pair for pair in pairs if pair[1] > budget]
    return low, min(above, key=lambda pair: pair[1], default=low)


class BudgetAssigner:
    """Assigns the clips of a video between two values of w_q, so that a budget is met.

    A clip gets the higher one where the tokens owed to the clips so far pay for it: of all tokens
    that the higher value would add, the budget pays for a fixed share. Where they pay for a part
    of it, the clip gets that many tokens.
    """

    def __init__(
        self,
        assign: AssignAt,
        fill: Fill,
        low: tuple[float, int],
        high: tuple[float, int],
        budget: float,
    ) -> None:
        """Args: low, high: (w_q, tokens of the video) from `enclose`; budget: tokens."""
        self.assign, self.fill, self.low, self.high = assign, fill, low[0], high[0]
        span = high[1] - low[1]
        self.share = (budget - low[1]) / span if span else 0.0
        self.balance = 0.0

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, T) token counts of clips (B, 3, F, S, S), taken in the order of the video."""
        low = self.assign(clips, self.low)
        if self.share == 0.0:
            return low
        high = self.assign(clips, self.high)
        rows = []
        for clip, short, long in zip(clips.split(1), low, high, strict=True):
            extra = int(long.sum() - short.sum())
            self.balance += self.share * extra
            chosen = long if extra <= self.balance else short
            if extra > self.balance >= 1:
                chosen = self.fill(clip, self.high, int(short.sum() + self.balance))[0]
            self.balance -= int(chosen.sum() - short.sum())
            rows.append(chosen)
        return torch.stack(rows)
