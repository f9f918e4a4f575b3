"""Block-causal masks and the attention over groups of equally assigned clips."""

from __future__ import annotations

import pytest
import torch

from tokenizer.attention.clip_groups import (
    ClipGroups,
    attend,
    block_causal_attention,
    block_causal_mask,
)


def test_worked_example_of_figure_11() -> None:
    """4 × 4 × 4 embeddings and a = (16, 8, 2, 2)."""
    tokens, cells = (16, 8, 2, 2), (16,) * 4
    assert block_causal_mask(tokens, tokens).shape == (28, 28)
    assert block_causal_mask(tokens, cells).shape == (28, 64)
    assert block_causal_mask(cells, cells).shape == (64, 64)
    assert block_causal_mask(cells, tokens).shape == (64, 28)
    # block 1 of 8 queries sees 16 + 8 queries and 32 embeddings
    assert block_causal_mask(tokens, tokens)[16:24].sum(1).tolist() == [24] * 8
    assert block_causal_mask(tokens, cells)[16:24].sum(1).tolist() == [32] * 8
    assert block_causal_mask(tokens, tokens)[-1].all()
    decoder = block_causal_mask(cells, tokens)
    assert decoder[0].sum() == 16 and decoder[16].sum() == 24 and decoder[48].sum() == 28


def dense_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.double())


@pytest.mark.parametrize("slices", [True, False])
@pytest.mark.parametrize("lengths", [((3, 1, 5), (4, 4, 4)), ((2,), (7,)), ((4, 4), (1, 6))])
def test_both_ways_equal_the_dense_reference(
    slices: bool, lengths: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, sum(lengths[0]), 3, 8, generator=generator)
    k = torch.randn(2, sum(lengths[1]), 3, 8, generator=generator)
    v = torch.randn(2, sum(lengths[1]), 3, 8, generator=generator)
    got = block_causal_attention(q, k, v, *lengths, slices=slices)
    want = dense_reference(q, k, v, block_causal_mask(*lengths))
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-5)


def test_bf16_on_cpu_is_as_exact_as_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 16, generator=generator) for _ in range(3))
    mask = block_causal_mask((4, 5), (6, 3))
    want = attend(q, k, v, mask)
    half = [x.bfloat16() for x in (q, k, v)]
    ours = (attend(half[0], half[1], half[2], mask).float() - want).abs().max()
    fused = torch.nn.functional.scaled_dot_product_attention(*half, attn_mask=mask)
    assert ours <= 2 * (fused.float() - want).abs().max()


def test_rows_return_to_the_order_of_the_batch() -> None:
    assignment = torch.tensor([[4, 2], [1, 1], [4, 2], [2, 8]])
    groups = ClipGroups.from_assignment(assignment)
    assert sum(groups.sizes) == 4 and len(groups.sizes) == 3
    sorted_rows = torch.cat([torch.full((int(assignment[i].sum()),), int(i)) for i in groups.order])
    assert groups.num_rows == len(sorted_rows)
    restored = sorted_rows[groups.rows_in_batch_order()]
    assert restored.tolist() == [0] * 6 + [1] * 2 + [2] * 6 + [3] * 10
