"""The form for sampling computes what the model does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference.engine import sample
from generator.inference.optimize import RoundedLinear, Weights, prepare_for_inference
from generator.inference.requests import SamplingConfig, class_requests


def logits(gpt: GPT, length: int = 24) -> Tensor:
    """Of a whole sequence at once, and token by token in two rows."""
    ids = torch.randint(gpt.vocabulary.size, (length,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = gpt(ids, torch.tensor([0, length], dtype=torch.int32))
        cache = gpt.new_cache(2, length)
        steps = [gpt.step(ids[i : i + 1].repeat(2), [cache]) for i in range(length)]
    return torch.cat([whole, *steps]).float()


@pytest.fixture
def large(make_gpt: Callable[..., GPT], vocabulary: Vocabulary) -> GPT:
    gpt = make_gpt(vocabulary, width=64, hidden=160)
    torch.nn.init.normal_(gpt.head.weight, std=0.1)
    return gpt


def test_float32_is_the_same(large: GPT) -> None:
    torch.testing.assert_close(
        logits(prepare_for_inference(large, compiled=False)), logits(large), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_rounds_once(large: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float32 as the plain model in bfloat16 is, and near to that."""
    exact, packed = logits(large), logits(prepare_for_inference(large, "bfloat16", compiled=False))
    monkeypatch.setattr("generator.inference.optimize._has_packed", lambda: False)
    plain = logits(prepare_for_inference(large, "bfloat16", compiled=False))
    error = (plain - exact).abs().max()
    assert (packed - exact).abs().max() <= 2 * error + 1e-6
    assert (packed - plain).abs().max() <= 2 * error


def test_int8_is_weight_only(large: GPT) -> None:
    """Any device's form against the CPU's kernel, whose activations are bfloat16."""
    layer, x = RoundedLinear(large.head.weight), torch.randn(7, 64)
    exact = torch.nn.functional.linear(x, layer.values.float() * layer.scales[:, None])
    torch.testing.assert_close(layer(x), exact, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer(x)[2:3], layer(x[2:3]), rtol=0, atol=0)
    error = (layer.values * layer.scales[:, None] - large.head.weight).abs()
    assert bool((error <= 0.5001 * layer.scales[:, None]).all())


def test_int8_is_near(large: GPT) -> None:
    exact, rounded = logits(large), logits(prepare_for_inference(large, "int8", compiled=False))
    assert (rounded - exact).square().mean().sqrt() < 0.2 * exact.square().mean().sqrt()


@pytest.mark.parametrize("compiled", [None, False])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_every_form_samples(large: GPT, weights: Weights, compiled: bool | None) -> None:
    gpt = prepare_for_inference(large, weights, compiled)
    settings = SamplingConfig(guidance=2.0)
    tokens = sample(gpt, class_requests(gpt.vocabulary, [0, 1, 2] * 4, list(range(12)), settings))
    assert tokens.assignment.shape == (12, 4)
    assert large.training is False and hasattr(large.layers[0], "q")  # left as it was
