"""The loss by motion and detail: what each pixel counts, and that it is off by default."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluation.metrics.quality import moving
from tokenizer.losses.reconstruction import LossConfig, pixel_weights, tokenizer_loss
from tokenizer.model import Reconstruction
from tokenizer.quantizer import Quantized
from tokenizer.tokens import Tokens

ZERO = {"l1": 0.0, "codebook": 0.0, "commitment": 0.0, "entropy": 0.0}


def clips() -> Tensor:
    """(2, 3, 4, 16, 16): grey with a bright square, which moves in the first clip only."""
    x = torch.zeros(2, 3, 4, 16, 16)
    for f in range(4):
        x[0, :, f, 6:9, 1 + 3 * f : 4 + 3 * f] = 0.8
        x[1, :, f, 6:9, 6:9] = 0.8
    return x


def loss(error: Tensor, **settings: float) -> float:
    zero = torch.zeros(())
    quantized = Quantized(zero, zero, zero, zero, zero, zero)
    x = clips()
    tokens = Tokens(torch.zeros(8, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    result = Reconstruction(x + error, tokens, quantized, zero)
    return float(tokenizer_loss(result, x, LossConfig.model_validate(ZERO | settings))[0])


def test_a_pixel_that_moves_counts_more_and_a_clip_as_much_as_any() -> None:
    x = clips()
    weights = pixel_weights(x, motion=4, detail=0)
    assert weights.shape == (2, 1, 4, 16, 16)
    torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(2))
    assert (weights[1] == 1).all()  # nothing moves there
    mask = moving(x)[0]
    inside, outside = weights[0, 0][mask].unique(), weights[0, 0][~mask].unique()
    assert len(inside) == len(outside) == 1 and float(inside / outside) == pytest.approx(5)


def test_detail_counts_by_its_contrast() -> None:
    weights = pixel_weights(clips(), motion=0, detail=2)[1, 0, 0]
    # The middle of the square: 9 of 25 pixels around are bright, so it stands out by 16/25 of 0.8.
    assert float(weights[7, 7] / weights[0, 0]) == pytest.approx(1 + 2 * 0.8 * 16 / 25, rel=1e-5)
    assert weights[0, 0] == weights.min()


@pytest.mark.parametrize("term", ["l1", "l2", "log_l2"])
def test_errors_where_it_moves_cost_more(term: str) -> None:
    x = clips()
    mask = moving(x)[:, None].expand_as(x)
    there = torch.where(mask, 0.1, 0.0)
    beside = torch.where(mask.roll(8, 3), 0.1, 0.0)  # as many pixels
    assert loss(there, **{term: 1.0}) == pytest.approx(loss(beside, **{term: 1.0}), rel=1e-5)
    weighted = {term: 1.0, "motion_weight": 4.0}
    assert loss(there, **weighted) > loss(there, **{term: 1.0}) > loss(beside, **weighted)


def test_gradient_is_of_edges_and_not_of_levels() -> None:
    flat = torch.full((2, 3, 4, 16, 16), 0.1)
    assert loss(flat, gradient=1.0) == pytest.approx(0, abs=1e-6)
    step = flat.clone()
    step[..., 8:] = 0.3  # one of 15 differences in each row, none in a column
    assert loss(step, gradient=1.0) == pytest.approx(0.2 / 15 / 2, rel=1e-4)
    assert loss(step, gradient=1.0, motion_weight=4.0) != loss(step, gradient=1.0)


def test_off_by_default() -> None:
    error = 0.1 * torch.randn(2, 3, 4, 16, 16)
    assert LossConfig().motion_weight == LossConfig().detail_weight == LossConfig().gradient == 0
    plain = 0.5 * error_of(error).abs().mean() + error_of(error).square().mean()
    assert loss(error, l1=0.5, l2=1.0) == pytest.approx(float(plain), rel=1e-6)


def error_of(error: Tensor) -> Tensor:
    """As it comes back from adding it to the clips."""
    return (clips() + error) - clips()
