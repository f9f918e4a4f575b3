"""Bits of tokens, and usage of the codebook.

Shape letters: L packed tokens, B batch, T blocks, K codebook size, m levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.tokens import Tokens


class Rate:
    """Counts over the tokens of many clips.

    A token costs log₂ K bits and a block log₂ m more for its length, as if all codes and lengths
    were alike likely: what a plain file of them takes, an upper bound for a coder that knows their
    frequencies. `code_bits` is the entropy, in bits, of the frequencies seen here: with few tokens
    it is too low.
    """

    def __init__(self, codebook_size: int, num_levels: int) -> None:
        """Args: codebook_size: K; num_levels: m."""
        self.codebook_size, self.num_levels = codebook_size, num_levels
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)
        self.blocks, self.pixels = 0, 0

    def update(self, tokens: Tokens, pixels: int) -> None:
        """Take in the tokens of clips that show so many pixels (frames × height × width)."""
        self.counts += torch.bincount(tokens.ids.cpu(), minlength=self.codebook_size)
        self.blocks += tokens.assignment.numel()
        self.pixels += pixels

    def merge(self, other: Rate) -> None:
        """Take in all that another has counted."""
        self.counts += other.counts
        self.blocks += other.blocks
        self.pixels += other.pixels

    def compute(self) -> dict[str, float]:
        """codebook_use, perplexity, code_bits, bits_per_pixel; the lengths' part of the last.

        Raises:
            EvatokError: nothing was counted.
        """
        total = int(self.counts.sum())
        if not total or not self.pixels:
            raise EvatokError("no tokens were given to count")
        entropy = _entropy(self.counts)
        lengths = self.blocks * math.log2(self.num_levels)
        return {
            "codebook_use": float((self.counts > 0).double().mean()),
            "perplexity": math.exp(entropy),
            "code_bits": entropy / math.log(2),
            "bits_per_pixel": (total * math.log2(self.codebook_size) + lengths) / self.pixels,
            "length_bits_per_pixel": lengths / self.pixels,
        }


def _entropy(counts: Tensor) -> float:
    """Of the frequencies, in nats."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log()).sum())
