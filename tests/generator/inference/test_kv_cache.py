from __future__ import annotations

import pytest
import torch

from generator.gpt import GPT
from tests.generator.sequences import packed


@torch.no_grad()
@pytest.mark.parametrize("prompts", [[0, 0, 0], [4, 4, 4], [0, 7, 3]])
def test_cached_decoding_equals_the_full_forward(gpt: GPT, prompts: list[int]) -> None:
    rows, steps = len(prompts), 6
    ids = torch.randint(gpt.vocabulary.size, (rows, max(prompts) + steps))
    cache = gpt.new_cache(rows, max(prompts) + steps)
    filled = [row for row in range(rows) if prompts[row]]
    if filled:
        gpt.prefill(
            torch.cat([ids[row, : prompts[row]] for row in filled]),
            packed([prompts[row] for row in filled]),
            cache,
            torch.tensor(filled),
        )
    for step in range(steps):
        at = torch.tensor(prompts) + step
        assert cache.positions.tolist() == at.tolist()
        logits = gpt.step(ids[torch.arange(rows), at], [cache])
        for row in range(rows):
            seen = ids[row, : prompts[row] + step + 1]
            expected = gpt(seen, packed([len(seen)]))[-1]
            torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_caches_of_one_step_are_independent(gpt: GPT) -> None:
    ids = torch.randint(gpt.vocabulary.size, (5, 8))
    old, new = gpt.new_cache(2, 9), gpt.new_cache(3, 9)
    for step in range(3):
        gpt.step(ids[:2, step], [old])
    for step in range(3):
        gpt.step(torch.cat([ids[:2, 3 + step], ids[2:, step]]), [old, new])
    logits = gpt.step(torch.cat([ids[:2, 6], ids[2:, 3]]), [old, new])
    for row in range(5):
        seen = ids[row, : 7 if row < 2 else 4]
        expected = gpt(seen, packed([len(seen)]))[-1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("keep", "order"),
    [([0, 1], [0, 1]), ([4, 5], [4, 5]), ([0, 1, 4, 5], [0, 1, 4, 5]), ([2, 3, 5], [3, 5, 2])],
)
def test_rows_that_stay_keep_their_past(gpt: GPT, keep: list[int], order: list[int]) -> None:
    ids = torch.randint(gpt.vocabulary.size, (6, 8))
    cache = gpt.new_cache(6, 8)
    for step in range(5):
        gpt.step(ids[:, step], [cache])
    left = cache.retain(keep)
    assert left == order
    assert len(cache) == len(keep)
    logits = gpt.step(ids[left, 5], [cache])
    for row, old in enumerate(left):
        expected = gpt(ids[old, :6], packed([6]))[-1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pairs_stay_in_order(gpt: GPT) -> None:
    cache = gpt.new_cache(8, 4)
    gpt.step(torch.zeros(8, dtype=torch.int64), [cache])
    order = cache.retain([0, 1, 6, 7])
    assert order == [0, 1, 6, 7]


@torch.no_grad()
def test_a_full_cache_is_an_error(gpt: GPT) -> None:
    cache = gpt.new_cache(1, 1)
    gpt.step(torch.tensor([0]), [cache])
    with pytest.raises(ValueError, match="the cache has 1"):
        gpt.step(torch.tensor([0]), [cache])


def test_cpu_keeps_float32(gpt: GPT) -> None:
    cache = gpt.to(torch.bfloat16).new_cache(1, 3)
    assert cache._keys.dtype == torch.float32
    assert gpt.step(torch.tensor([0]), [cache]).dtype == torch.bfloat16
