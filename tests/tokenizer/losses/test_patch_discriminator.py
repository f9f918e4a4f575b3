"""The patch discriminator: shapes, size, what it sees, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer.losses.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig


def build(**changes: Any) -> PatchDiscriminator:
    settings = {"patch": (4, 8, 8), "width": 24, "layers": 2, "heads": 2}
    torch.manual_seed(0)
    config = PatchDiscriminatorConfig.model_validate(settings | changes)
    model = PatchDiscriminator(config, 12, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_logit_a_patch_or_a_clip(clips: Tensor) -> None:
    assert build()(clips).shape == (5, 3 * 2 * 2)
    assert build(patch=(2, 4, 8))(clips).shape == (5, 6 * 4 * 2)
    assert build(per_clip=True)(clips).shape == (5, 1)


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = PatchDiscriminator(PatchDiscriminatorConfig(per_clip=True), 16, 128)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(38.2, abs=0.1)


@pytest.mark.parametrize("per_clip", [False, True])
def test_every_logit_sees_the_whole_clip_and_no_other(clips: Tensor, per_clip: bool) -> None:
    model = build(per_clip=per_clip)
    x = clips.clone().requires_grad_()
    model(x)[2, 0].backward()
    assert x.grad is not None
    assert x.grad[2].abs().amax((0, 2, 3)).gt(0).all()  # every frame
    assert not x.grad[[0, 1, 3, 4]].any()


def test_places_differ(clips: Tensor) -> None:
    """Equal patches get unequal logits: the positions reach them."""
    logits = build()(torch.zeros_like(clips))
    assert logits[0].unique().numel() == 12


def test_positions_are_not_saved() -> None:
    assert "position" not in build().state_dict()


def test_refusals(clips: Tensor) -> None:
    with pytest.raises(ValueError, match=r"clips .* are not \(B, \(3, 12, 16, 16\)\)"):
        build()(clips[:, :, :8])
    with pytest.raises(ValueError, match="num_frames 12 is not divisible by the patch's 5"):
        build(patch=(5, 8, 8))
    with pytest.raises(ValueError, match="width 24 is not divisible by heads 5"):
        build(heads=5)
