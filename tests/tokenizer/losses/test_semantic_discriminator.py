"""The semantic discriminator: shapes, what is trained, and that every setting bites."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer.losses.semantic_discriminator import (
    SemanticDiscriminator,
    SemanticDiscriminatorConfig,
)

spec = importlib.util.spec_from_file_location("frozen", Path(__file__).parents[1] / "frozen.py")
assert spec is not None and spec.loader is not None
frozen = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frozen)


def build(**changes: Any) -> SemanticDiscriminator:
    settings = {"layers": [1, 3], "width": 8, "groups": 2, "kernel": 5}
    torch.manual_seed(0)
    config = SemanticDiscriminatorConfig.model_validate(settings | changes)
    return SemanticDiscriminator(config, frozen.ToyEncoder((2, 3, 3)))


def test_a_logit_a_token_and_layer(clips: Tensor) -> None:
    logits = build()(clips)
    assert logits.shape == (5, 2 * 18) and logits.isfinite().all()
    assert build(layers=[2])(clips).shape == (5, 18)


def test_rows_do_not_see_each_other(clips: Tensor) -> None:
    model = build().eval()
    torch.testing.assert_close(model(clips)[3:4], model(clips[3:4]))


def test_only_heads_are_trained_and_saved(clips: Tensor) -> None:
    model = build()
    state = model.state_dict()
    assert state and all(name.startswith("heads.") for name in state)
    x = clips.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and x.grad.flatten(1).any(1).all()  # of every clip
    assert all(p.grad is not None for p in model.parameters())
    encoder: Any = model.encoder
    assert all(p.grad is None for p in encoder.net.parameters())
    copy = build(width=8)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.eval()(clips), model.eval()(clips))


def test_detached_clips_cost_no_graph_of_the_encoder(clips: Tensor) -> None:
    encoder: Any = build().encoder
    assert not encoder.hidden(clips, [3])[0].requires_grad


def test_heads_read_along_the_token_sequence(clips: Tensor) -> None:
    """Without norms a logit depends on kernel // 2 tokens on each side and on no others."""
    for kernel, reach in ((1, 0), (5, 2)):
        model = build(norm="none", kernel=kernel, layers=[1])
        tokens = torch.randn(1, 10, 18, requires_grad=True)
        model.heads[0](tokens)[0, 9].backward()
        assert tokens.grad is not None
        seen = tokens.grad[0].any(0).nonzero().flatten().tolist()
        assert seen == list(range(9 - reach, 10 + reach)), kernel


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": 3}, {"width": 16}, {"norm": "none"}, {"groups": 4}, {"spectral_norm": False},
        {"blocks": 2}, {"blocks": 0}, {"layers": [2, 3]},
    ],
)  # fmt: skip
def test_every_setting_bites(clips: Tensor, change: dict[str, Any]) -> None:
    assert not torch.allclose(build()(clips), build(**change)(clips))


def test_spectral_norm_bounds_every_matrix(clips: Tensor) -> None:
    model = build(spectral_norm=True)
    for _ in range(200):  # a power iteration a forward
        model(clips[:1])
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv1d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        matrix = convolution.weight.detach().flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1, abs=0.02)


def test_settings_that_make_no_sense() -> None:
    for changes, message in (
        ({"kernel": 4}, "should be odd"),
        ({"layers": []}, "distinct layers"),
        ({"layers": [1, 1]}, "distinct layers"),
        ({"width": 9}, "width 9 is not divisible by groups 2"),
        ({"layers": [4]}, "toy has layers 1 to 3, not 4"),
        ({"heads": 1}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
    assert SemanticDiscriminatorConfig().kind == "semantic"


def test_real_and_fake_are_told_apart(clips: Tensor) -> None:
    """The hinge loss of heads on frozen features falls, though every matrix is bounded."""
    model = build()
    fake = clips.flip(2) * 0.5
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (1 - model(clips)).relu().mean() + (1 + model(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5 and losses[-1] < 0.6 * losses[0]
