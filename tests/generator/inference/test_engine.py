from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generator.conditions import FrameCondition
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference.engine import sample
from generator.inference.requests import Request, SamplingConfig, class_requests, frame_requests
from generator.inference.sampling import sample_tokens
from tests.generator.inference.mixed import mixed_requests
from tokenizer.tokens import Tokens


def uniform_numbers(count: int) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_thousand_samples_obey_the_grammar(gpt: GPT) -> None:
    requests = mixed_requests(gpt, 1000)
    tokens = sample(gpt, requests, batch_size=250)
    assert tokens.assignment.shape == (1000, 4)
    assert set(tokens.assignment.unique().tolist()) == set(gpt.vocabulary.levels)
    assert int(tokens.ids.min()) >= 0
    assert int(tokens.ids.max()) < gpt.vocabulary.codebook_size
    for request, blocks in zip(requests, tokens.blocks(), strict=True):
        for given, block in zip(request.given, blocks, strict=False):
            assert torch.equal(given, block)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_a_request_does_not_depend_on_the_batch(gpt: GPT, batch_size: int) -> None:
    requests = mixed_requests(gpt, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(batch_size)).tolist()
    together = sample(gpt, requests, batch_size=40).blocks()
    shuffled = sample(gpt, [requests[i] for i in order], batch_size=batch_size).blocks()
    for place, index in enumerate(order):
        ours = [block.tolist() for block in shuffled[place]]
        assert ours == [block.tolist() for block in together[index]]


def test_seed_decides(gpt: GPT) -> None:
    settings = SamplingConfig()
    same, same_again, other = sample(
        gpt, class_requests(gpt.vocabulary, [0, 0, 0], [1, 1, 2], settings)
    ).blocks()
    assert torch.equal(torch.cat(same), torch.cat(same_again))
    assert torch.cat(same).tolist() != torch.cat(other).tolist()


@torch.no_grad()
def test_greedy_samples_are_the_most_probable_tokens(gpt: GPT) -> None:
    """Against the full forward of the finished sequence, with guidance u + s (c − u)."""
    vocabulary, scale = gpt.vocabulary, 1.7
    settings = SamplingConfig(guidance=scale, temperature=0)
    requests = class_requests(vocabulary, [0, 1, 2], [5, 6, 7], settings)
    for label, blocks in enumerate(sample(gpt, requests).blocks()):
        sequence = vocabulary.encode_blocks(blocks)
        cu_seqlens = torch.tensor([0, len(sequence)], dtype=torch.int32)
        logits = [
            gpt(torch.cat([torch.tensor([first]), sequence[:-1]]), cu_seqlens)
            for first in (vocabulary.class_token(label), vocabulary.null)
        ]
        guided = logits[1] + scale * (logits[0] - logits[1])
        kind = vocabulary.kinds[sequence]
        allowed = vocabulary.kinds == kind[:, None]
        assert torch.equal(guided.masked_fill(~allowed, -torch.inf).argmax(-1), sequence)


@torch.no_grad()
def test_frequencies_follow_the_model(make_gpt: Callable[..., GPT]) -> None:
    vocabulary = Vocabulary(codebook_size=3, levels=(1, 2), num_blocks=1, class_names=("a",))
    gpt = make_gpt(vocabulary)
    count = 4000
    settings = SamplingConfig()
    tokens = sample(gpt, class_requests(vocabulary, [0] * count, range(count), settings), 2000)
    logits = gpt(torch.tensor([vocabulary.class_token(0)]), torch.tensor([0, 1]))
    expected = logits[0, vocabulary.first_length : vocabulary.null].softmax(-1)
    share = (tokens.assignment[:, 0] == 2).double().mean().item()
    assert share == pytest.approx(expected[1].item(), abs=0.03)


def test_sample_tokens_never_takes_a_forbidden_token() -> None:
    logits = torch.zeros(4, 6).masked_fill(
        torch.tensor([True, False, True, False, False, True]), -torch.inf
    )
    off = torch.ones(4), torch.zeros(4, dtype=torch.int64), torch.ones(4)
    uniform = torch.tensor([0.0, 1 / 3 - 1e-9, 0.99999999, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(logits, uniform, *off).tolist() == [1, 1, 4, 4]


def test_sample_tokens_with_settings_of_its_own_in_each_row() -> None:
    count = 3000
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    rows = [  # temperature, top_k, top_p, expected distribution
        (1.0, 0, 1.0, [0.5, 0.25, 0.15, 0.1]),
        (1.0, 2, 1.0, [2 / 3, 1 / 3, 0, 0]),
        (1.0, 0, 0.6, [2 / 3, 1 / 3, 0, 0]),
        (0.0, 0, 1.0, [1, 0, 0, 0]),
        (0.5, 3, 0.95, [0.25 / 0.335, 0.0625 / 0.335, 0.0225 / 0.335, 0]),
        # 0.5 and 0.25 are over 0.8 of the three that top-k leaves, and under 0.8 of all four
        (1.0, 3, 0.8, [2 / 3, 1 / 3, 0, 0]),
    ]
    temperature, top_k, top_p = (
        torch.tensor([row[i] for row in rows]).repeat_interleave(count) for i in range(3)
    )
    chosen = sample_tokens(
        p.log().repeat(len(rows) * count, 1),
        uniform_numbers(count).repeat(len(rows)),
        temperature,
        top_k,
        top_p,
    )
    for row, part in zip(rows, chosen.split(count), strict=True):
        shares = part.bincount(minlength=4) / count
        torch.testing.assert_close(shares, torch.tensor(row[3]).float(), atol=0.03, rtol=0)


def test_errors_name_the_rule(gpt: GPT, vocabulary: Vocabulary, frames: FrameCondition) -> None:
    condition = Tokens.from_blocks([[torch.zeros(k, dtype=torch.int64) for k in (5, 2)]])
    with pytest.raises(ValueError, match="null condition"):
        frame_requests(vocabulary, frames, condition, [0], SamplingConfig(guidance=2.0))
    wrong = Tokens.from_blocks([[torch.zeros(k, dtype=torch.int64) for k in (2, 2)]])
    with pytest.raises(ValueError, match="not assigned"):
        frame_requests(vocabulary, frames, wrong, [0], SamplingConfig())
    long = Request(torch.tensor([0]), 99, 0, SamplingConfig())
    with pytest.raises(ValueError, match="the model holds"):
        sample(gpt, [long])
