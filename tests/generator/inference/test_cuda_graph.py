"""Batches of one fixed shape, recorded or not, against the rows that grow."""

from __future__ import annotations

import copy

import pytest
import torch

from generator.gpt import GPT
from generator.inference.cuda_graph import GraphBatch
from generator.inference.engine import sample
from generator.inference.optimize import prepare_for_inference
from tests.generator.inference.mixed import mixed_requests


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_samples_are_those_of_rows_that_grow(
    gpt: GPT, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditions, guidance and lengths of all kinds, slots taken again and again."""
    requests = mixed_requests(gpt, 48)
    expected = sample(gpt, requests, 16)
    static = copy.copy(gpt)
    monkeypatch.setattr(
        static,
        "new_batch",
        lambda rows, max_len: GraphBatch(static, rows, max_len, record=False),
        raising=False,
    )
    found = sample(static, requests, batch_size)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.assignment, expected.assignment)


def test_graphs_are_refused_without_a_gpu(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="CUDA graphs need a GPU, and the model is on cpu"):
        prepare_for_inference(gpt, graphs=True)


@pytest.mark.gpu
def test_a_recorded_step_is_the_step(gpt: GPT) -> None:
    model = gpt.to("cuda")
    requests = mixed_requests(model, 24)
    expected = sample(prepare_for_inference(model), requests, 8)
    found = sample(prepare_for_inference(model, graphs=True), requests, 8)
    assert torch.equal(found.ids, expected.ids)
