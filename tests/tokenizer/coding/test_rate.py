"""Bits and use of the codebook, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tokenizer.coding.rate import Rate
from tokenizer.tokens import Tokens


def tokens(ids: list[int], assignment: list[list[int]]) -> Tokens:
    return Tokens(torch.tensor(ids), torch.tensor(assignment))


def test_counted_by_hand() -> None:
    """Codes 0, 0, 1, 2 of 8; four blocks with one of two lengths; 100 pixels."""
    rate = Rate(8, 2)
    rate.update(tokens([0, 1], [[1, 1]]), 60)
    rate.update(tokens([0, 2], [[1, 1]]), 40)
    values = rate.compute()
    assert values["codebook_use"] == 3 / 8
    assert values["code_bits"] == pytest.approx(1.5)
    assert values["perplexity"] == pytest.approx(2**1.5)
    assert values["bits_per_pixel"] == pytest.approx((4 * 3 + 4 * 1) / 100)
    assert values["length_bits_per_pixel"] == pytest.approx(4 / 100)


def test_even_use_is_the_whole_codebook_and_one_length_is_free() -> None:
    rate = Rate(16, 1)
    rate.update(tokens(list(range(16)), [[8, 8]]), 64)
    values = rate.compute()
    assert values["codebook_use"] == 1
    assert values["perplexity"] == pytest.approx(16)
    assert values["bits_per_pixel"] == 16 * math.log2(16) / 64
    assert values["length_bits_per_pixel"] == 0


def test_nothing_counted() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Rate(8, 2).compute()
