"""Limits on the tokens of the blocks of a sample, obeyed exactly, by masking.

Shape letters: N requests, T blocks, V vocabulary, m levels.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from evatok.core.config import Config
from evatok.core.errors import EvatokError
from generator.grammar import Vocabulary

NO_LIMIT = 1 << 40


class BudgetConfig(Config):
    """Limits on lengths set by the user.

    Attributes:
        max_tokens: codes of the whole clip at most, given blocks included; None = no limit.
        lengths: the level of each block to generate; None = the model decides.
        length_bias: added to the logit of the n-th level, n times: above 0 for longer blocks.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    lengths: tuple[int, ...] | None = None
    length_bias: float = Field(default=0.0, ge=-10_000, le=10_000)

    @property
    def is_free(self) -> bool:
        """Whether it asks for nothing."""
        return self == BudgetConfig()

    def check(self, vocabulary: Vocabulary, num_blocks: int, given: int = 0) -> None:
        """Refuse what cannot be obeyed.

        Args:
            vocabulary: of the model.
            num_blocks: blocks to generate.
            given: codes of the given blocks.

        Raises:
            EvatokError: levels that do not exist, or a limit under the least that is possible.
        """
        if self.lengths is not None:
            levels = ", ".join(map(str, vocabulary.levels))
            if len(self.lengths) != num_blocks:
                raise EvatokError(
                    f"lengths {_joined(self.lengths)}: give {num_blocks}, one for each block"
                )
            if not set(self.lengths) <= set(vocabulary.levels):
                raise EvatokError(f"lengths {_joined(self.lengths)}: each is one of {levels}")
        least = given + sum(self.lengths or (vocabulary.levels[0],) * num_blocks)
        if self.max_tokens is not None and self.max_tokens < least:
            told = "these lengths take" if self.lengths else "the shortest clip has"
            with_given = f" with the {given} given" if given else ""
            raise EvatokError(f"max_tokens {self.max_tokens}: {told} {least}{with_given}")


def _joined(lengths: tuple[int, ...]) -> str:
    return ",".join(map(str, lengths))


class Budgets:
    """The limits of the requests at work: a state machine beside the grammar, vectorised."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        """Begin without a request.

        Args:
            vocabulary: of the model.
            device: of its logits.
        """
        self.first, self.last = vocabulary.first_length, vocabulary.null
        self._levels = torch.tensor(vocabulary.levels, device=device)  # (m,)
        self._counts = vocabulary.counts.to(device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self._left = none  # (N,) codes that may still come
        self._block = none  # (N,) number of the block whose length comes next
        self._plan = none.view(0, vocabulary.num_blocks)  # (N, T) levels, 0 = free
        self._bias = torch.zeros(0, device=device)  # (N,)
        self.are_free = True

    def extend(self, budgets: list[BudgetConfig], given: list[int]) -> None:
        """Add requests, with the codes of their given blocks."""
        device, width = self._left.device, self._plan.shape[1]
        limits = [
            NO_LIMIT if b.max_tokens is None else b.max_tokens - g
            for b, g in zip(budgets, given, strict=True)
        ]
        plans = [[*(b.lengths or ()), *[0] * (width - len(b.lengths or ()))] for b in budgets]
        self._left = torch.cat([self._left, torch.tensor(limits, device=device)])
        self._block = torch.cat([self._block, torch.zeros_like(self._left[len(self._block) :])])
        self._plan = torch.cat([self._plan, torch.tensor(plans, device=device)])
        bias = torch.tensor([b.length_bias for b in budgets], device=device)
        self._bias = torch.cat([self._bias, bias])
        self.are_free = self.are_free and all(b.is_free for b in budgets)

    def apply(self, logits: Tensor, blocks_left: Tensor) -> Tensor:
        """Logits (N, V), −∞ for the length tokens that would break a limit.

        Args:
            logits: (N, V), changed in place.
            blocks_left: (N,) int64, length tokens still to come.
        """
        if self.are_free:
            return logits
        least = self._levels[0] * (blocks_left - 1).clamp(min=0)  # of the blocks that follow
        fits = self._levels <= (self._left - least)[:, None]  # (N, m)
        at = self._block.clamp(max=self._plan.shape[1] - 1)[:, None]
        planned = self._plan.gather(1, at)  # (N, 1)
        fits &= (planned == 0) | (self._levels == planned)
        part = logits[:, self.first : self.last]
        ranks = torch.arange(len(self._levels), device=part.device)
        part += self._bias[:, None] * ranks
        part.masked_fill_(~fits, -torch.inf)
        return logits

    def advance(self, tokens: Tensor) -> None:
        """Take the tokens (N,) int64 that were chosen."""
        if self.are_free:
            return
        announced = self._counts[tokens]
        self._left = self._left - announced
        self._block = self._block + (announced > 0)

    def select(self, rows: Tensor) -> None:
        """Keep only these requests (N,) int64, in this order."""
        self._left, self._block = self._left[rows], self._block[rows]
        self._plan, self._bias = self._plan[rows], self._bias[rows]
