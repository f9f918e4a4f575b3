"""Sampling waits for the device once a token at most, and makes the CPU's samples."""

from __future__ import annotations

import pytest
import torch

from generator.conditions import FrameCondition
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from generator.inference.cuda_graph import GraphBatch
from generator.inference.engine import _Batch, sample, stream
from generator.inference.requests import SamplingConfig, class_requests
from tests.devices.simulated import READS, simulated
from tests.generator.inference.mixed import mixed_requests


@pytest.fixture
def gpt() -> GPT:
    vocabulary = Vocabulary(
        codebook_size=12, levels=(1, 2, 5), num_blocks=4, class_names=("cat", "dog", "bee")
    )
    torch.manual_seed(0)
    size = GPTConfig(width=16, layers=1, heads=2, hidden=24)
    model = GPT(size, vocabulary, FrameCondition(num_frames=5, prefix=(5, 2)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Reads of each step of the engine, admissions before it included."""
    counts: list[int] = []
    plain = _Batch._step
    before = [0]

    def step(self: _Batch) -> None:
        plain(self)
        counts.append(len(READS) - before[0])
        before[0] = len(READS)

    monkeypatch.setattr(_Batch, "_step", step)
    return counts


@pytest.mark.parametrize("kind", ["mixed", "scheduled", "budgets", "greedy"])
@pytest.mark.parametrize("is_static", [False, True])
def test_once_a_token(
    gpt: GPT, steps: list[int], kind: str, is_static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "mixed":
        requests = mixed_requests(gpt, 12)
    else:
        settings = {
            "scheduled": {"guidance": 2.0, "guidance_schedule": "cosine", "top_p": 0.9},
            "budgets": {"budget": {"max_tokens": 9, "length_bias": 2.0}},
            "greedy": {"temperature": 0.0},
        }[kind]
        chosen = SamplingConfig.model_validate(settings)
        requests = class_requests(gpt.vocabulary, [0, 1, 2] * 2, range(6), chosen)
    expected = sample(gpt, requests, 4)
    steps.clear()
    if is_static:  # as under CUDA graphs, without a recording
        monkeypatch.setattr(
            gpt, "new_batch", lambda rows, max_len: GraphBatch(gpt, rows, max_len, record=False),
            raising=False,
        )  # fmt: skip
    with simulated() as device:
        found = sample(gpt.to(device), requests, 4)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.assignment, expected.assignment)
    assert max(steps) == 1
    assert sum(steps) < len(steps)  # a step in which all take codes asks for nothing
    if kind == "budgets":
        assert int(found.assignment.sum(1).max()) <= 9


def test_blocks_that_are_told_cost_no_more(gpt: GPT, steps: list[int]) -> None:
    requests = class_requests(gpt.vocabulary, [0, 1, 2], range(3), SamplingConfig(guidance=1.5))
    expected = [(n, b, ids.tolist()) for n, b, ids in stream(gpt, requests)]
    steps.clear()
    with simulated() as device:
        found = [(n, b, ids.tolist()) for n, b, ids in stream(gpt.to(device), requests)]
    assert found == expected and max(steps) == 1
