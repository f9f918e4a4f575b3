"""The networks' layers in training: recomputed in the backward pass, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from tokenizer.losses.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router, RouterConfig
from training.layers import checkpoint_activations, layers_of


def gradients(model: nn.Module, loss: Callable[[], Tensor], less: bool) -> list[Tensor]:
    model.zero_grad()
    with checkpoint_activations(model) if less else nullcontext():
        loss().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_tokenizer(model: VideoTokenizer, clips: Tensor, assignment: Tensor) -> None:
    def loss() -> Tensor:
        return tokenizer_loss(model(clips, assignment), clips, LossConfig())[0]

    assert len(layers_of(model)) == 4
    plain, less = (gradients(model, loss, on) for on in (False, True))
    assert len(plain) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, less, strict=True))


@pytest.mark.parametrize("which", ["router", "discriminator"])
def test_whole_clip_networks(clips: Tensor, which: str) -> None:
    torch.manual_seed(0)
    size = {"width": 24, "layers": 2, "heads": 2}
    if which == "router":
        config = {"levels": (1, 4), "num_frames": 12, "size": 16} | size
        model: nn.Module = Router(RouterConfig.model_validate(config))
    else:
        model = PatchDiscriminator(PatchDiscriminatorConfig.model_validate(size), 12, 16)
    plain, less = (
        gradients(model, lambda: model(clips).square().sum(), on) for on in (False, True)
    )
    assert plain and all(torch.equal(a, b) for a, b in zip(plain, less, strict=True))
