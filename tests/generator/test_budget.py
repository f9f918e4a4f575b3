"""Budgets: obeyed exactly, refused where they can't be; schedules and blocks told on the way."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generator.budget import BudgetConfig
from generator.conditions import FrameCondition
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference.engine import sample
from generator.inference.optimize import prepare_for_inference
from generator.inference.requests import Request, SamplingConfig, class_requests, frame_requests
from generator.inference.sampling import scheduled
from tokenizer.tokens import Tokens


def random_budget(vocabulary: Vocabulary, blocks: int, given: int, rng: random.Random):
    """Nothing, a limit, a plan, a wish, or several of them."""
    levels = vocabulary.levels
    lengths = tuple(rng.choice(levels) for _ in range(blocks)) if rng.random() < 0.3 else None
    least = given + sum(lengths or (levels[0],) * blocks)
    limit = least + rng.randrange(blocks * levels[-1]) if rng.random() < 0.5 else None
    return BudgetConfig(max_tokens=limit, lengths=lengths, length_bias=rng.choice([0, 0, -3, 3]))


def random_requests(gpt: GPT, count: int, rng: random.Random) -> list[Request]:
    vocabulary, frames = gpt.vocabulary, gpt.frames
    assert frames is not None
    requests: list[Request] = []
    for seed in range(count):
        is_frames = rng.random() < 0.3
        given = sum(frames.prefix[: frames.kept_blocks]) if is_frames else 0
        blocks = vocabulary.num_blocks - (frames.kept_blocks if is_frames else 0)
        settings = SamplingConfig(
            guidance=rng.choice([1, 2.5]),
            temperature=rng.choice([0.5, 1, 2]),
            top_k=rng.choice([0, 3]),
            guidance_schedule=rng.choice(["constant", "linear", "cosine"]),
            budget=random_budget(vocabulary, blocks, given, rng),
        )
        if is_frames:
            codes = [torch.randint(vocabulary.codebook_size, (k,)) for k in frames.prefix]
            plain = settings.model_copy(update={"guidance": 1.0})
            condition = Tokens.from_blocks([codes])
            requests += frame_requests(vocabulary, frames, condition, [seed], plain)
        else:
            label = rng.choice([0, 1, 2, None])
            requests += class_requests(vocabulary, [label], [seed], settings)
    return requests


def check(gpt: GPT, requests: list[Request], tokens: Tokens) -> None:
    for request, blocks in zip(requests, tokens.blocks(), strict=True):
        lengths, budget = [len(block) for block in blocks], request.settings.budget
        assert len(blocks) == gpt.vocabulary.num_blocks
        assert set(lengths) <= set(gpt.vocabulary.levels)
        if budget.lengths is not None:
            assert tuple(lengths[len(request.given) :]) == budget.lengths
        if budget.max_tokens is not None:
            assert sum(lengths) <= budget.max_tokens


@pytest.mark.parametrize("compiled", [None, False])
@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_samples_obey_grammar_and_budget(gpt: GPT, count: int, compiled: bool | None) -> None:
    gpt = prepare_for_inference(gpt, compiled=compiled)
    rng = random.Random(0)
    requests = random_requests(gpt, count, rng)
    while requests:
        some, requests = requests[:500], requests[500:]
        check(gpt, some, sample(gpt, some, batch_size=rng.choice([17, 64, 200])))


def test_budgets_of_others_change_nothing(gpt: GPT) -> None:
    requests = random_requests(gpt, 40, random.Random(1))
    together = sample(gpt, requests, batch_size=16).blocks()
    for index in (0, 7, 23, 39):
        (alone,) = sample(gpt, [requests[index]]).blocks()
        assert all(torch.equal(a, b) for a, b in zip(alone, together[index], strict=True))


def test_a_bias_moves_the_lengths(gpt: GPT) -> None:
    def mean(bias: float) -> float:
        settings = SamplingConfig(budget=BudgetConfig(length_bias=bias))
        requests = class_requests(gpt.vocabulary, [0] * 60, list(range(60)), settings)
        return float(sample(gpt, requests).lengths.double().mean())

    low, middle, high = mean(-2), mean(0), mean(2)
    assert low < middle < high


def test_what_cannot_be_obeyed_is_refused(gpt: GPT, frames: FrameCondition) -> None:
    vocabulary = gpt.vocabulary  # levels 1, 2, 5; 4 blocks

    def refused(message: str, **budget: object) -> None:
        settings = SamplingConfig(budget=BudgetConfig.model_validate(budget))
        with pytest.raises(ValueError, match=message):
            sample(gpt, class_requests(vocabulary, [0], [0], settings))

    refused("max_tokens 3: the shortest clip has 4", max_tokens=3)
    refused("max_tokens 7: these lengths take 9", max_tokens=7, lengths=(5, 2, 1, 1))
    refused("lengths 5,2: give 4, one for each block", lengths=(5, 2))
    refused("lengths 5,2,3,1: each is one of 1, 2, 5", lengths=(5, 2, 3, 1))
    condition = Tokens.from_blocks([[torch.zeros(k, dtype=torch.int64) for k in frames.prefix]])
    settings = SamplingConfig(budget=BudgetConfig(max_tokens=4))
    with pytest.raises(ValueError, match=r"the shortest clip has \d+ with the \d+ given"):
        sample(gpt, frame_requests(vocabulary, frames, condition, [0], settings))


def test_blocks_are_told_as_soon_as_they_are_out(gpt: GPT) -> None:
    requests = random_requests(gpt, 30, random.Random(2))
    told: dict[int, dict[int, Tensor]] = {}
    order: list[int] = []

    def on_block(request: int, block: int, ids: Tensor) -> None:
        told.setdefault(request, {})[block] = ids
        order.append(request)

    tokens = sample(gpt, requests, batch_size=8, on_block=on_block)
    for number, (request, blocks) in enumerate(zip(requests, tokens.blocks(), strict=True)):
        first = len(request.given)
        assert list(told[number]) == list(range(first, len(blocks)))
        for block in range(first, len(blocks)):
            assert torch.equal(told[number][block], blocks[block])
    assert order != sorted(order)  # clip by clip it would be no stream


def test_guidance_follows_its_schedule() -> None:
    block = torch.tensor([0, 1, 3, 0, 3, 0, 2, 3])
    schedule = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    scales = scheduled(torch.full((8,), 3.0), schedule, block, torch.full((8,), 4.0))
    torch.testing.assert_close(scales, torch.tensor([3, 3, 3, 1, 3, 1, 1 + 2 * 0.75, 3.0]))


def test_a_schedule_is_no_constant_scale(make_gpt: Callable[..., GPT], vocabulary: Vocabulary):
    gpt = make_gpt(vocabulary)
    out = []
    for name in ("constant", "linear"):
        settings = SamplingConfig(guidance=6.0, guidance_schedule=name)  # type: ignore[arg-type]
        requests = class_requests(vocabulary, [1] * 8, list(range(8)), settings)
        out.append(sample(gpt, requests).ids)
    assert out[0].tolist() != out[1].tolist()
