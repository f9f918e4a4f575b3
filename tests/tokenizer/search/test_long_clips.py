"""A router of four blocks on longer clips."""

from __future__ import annotations

import pytest
import torch

from tokenizer.router import Router, RouterConfig
from tokenizer.search.long_clips import slide


@pytest.fixture
def router() -> Router:
    torch.manual_seed(0)
    config = RouterConfig(
        levels=(1, 2, 4), num_frames=12, size=16, patch=(4, 8, 8), width=16, layers=1, heads=2,
        preference=True,
    )  # fmt: skip
    router = Router(config).eval()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(torch.randn_like(parameter))
    return router


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_window_keeps_what_was_chosen(router: Router, stride: int) -> None:
    """Against the same written clip by clip."""
    clips = torch.randn(3, 3, 28, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    chosen = slide(router, clips, stride=stride, w_q=1.3)
    assert chosen.shape == (3, 7)
    for clip, got in zip(clips, chosen.tolist(), strict=True):
        mine = router.assign(clip[None, :, :12], w_q=1.3)[0].tolist()
        while len(mine) < 7:
            start = min(len(mine) + stride, 7) - 3
            window = clip[None, :, 4 * start : 4 * start + 12]
            mine = mine[:start] + router.assign(window, mine[start:], w_q=1.3)[0].tolist()
        assert got == mine
    assert torch.equal(slide(router, clips[:, :, :12]), router.assign(clips[:, :, :12]))


def test_refusals(router: Router) -> None:
    clips = torch.zeros(1, 3, 16, 16, 16)
    with pytest.raises(ValueError, match="8 frames are not 3 or more blocks of 4"):
        slide(router, clips[:, :, :8])
    with pytest.raises(ValueError, match="stride 4 is not 1 to 3"):
        slide(router, clips, stride=4)
