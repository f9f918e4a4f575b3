"""What is computed in float64 is so on the CPU where a device, as Apple's GPUs, has none."""

from __future__ import annotations

import pytest
import torch

from evatok.workflows.captions import measure_clips
from tests.devices.simulated import simulated
from tokenizer.coding import exact
from tokenizer.coding.exact import ExactEncoder
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router, RouterConfig
from tokenizer.search.beam import beam_search
from tokenizer.search.reward import RewardStats

LEVELS = (1, 2, 4)


@pytest.fixture
def model() -> VideoTokenizer:
    torch.manual_seed(0)
    former = QFormerConfig(width=16, layers=1, heads=2)
    config = TokenizerConfig(
        levels=LEVELS, num_frames=8, size=16, encoder=former, decoder=former, codebook_size=16
    )
    return VideoTokenizer(config).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(3, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("preference", [False, True])
def test_near_ties(
    model: VideoTokenizer,
    clips: torch.Tensor,
    preference: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here every decision is a near tie."""
    monkeypatch.setattr(exact, "CODE_MARGIN", 9.0)
    monkeypatch.setattr(exact, "LOGIT_MARGIN", 99.0)
    router = Router(
        RouterConfig(
            levels=LEVELS, num_frames=8, size=16, width=16, layers=1, heads=2, preference=preference
        )
    ).eval()
    w_q = 1.3 if preference else None
    encoder = ExactEncoder(model, router)
    assignment = encoder.assign(clips, w_q=w_q, max_tokens=6)
    expected = encoder.encode(clips, assignment)
    with simulated(has_float64=False) as device:
        encoder = ExactEncoder(model.to(device), router.to(device))
        there = clips.to(device)
        found = encoder.assign(there, w_q=w_q, max_tokens=6)
        tokens = encoder.encode(there, found)
        assert found.device == tokens.ids.device == device
        assert torch.equal(found.cpu(), assignment)
        assert torch.equal(tokens.ids.cpu(), expected.ids)


def test_measures_of_captions(clips: torch.Tensor) -> None:
    expected = torch.stack(measure_clips(clips))
    with simulated(has_float64=False) as device:
        assert torch.equal(torch.stack(measure_clips(clips.to(device))), expected)


def test_beam_search(model: VideoTokenizer, clips: torch.Tensor) -> None:
    standard = RewardStats(mean_quality=10, std_quality=2, mean_length=4, std_length=2)
    expected = beam_search(model, clips, standard, 1.3, 2)
    with simulated(has_float64=False) as device:
        found = beam_search(model.to(device), clips.to(device), standard, 1.3, 2)
        assert torch.equal(found.assignment.cpu(), expected.assignment)
        assert torch.equal(found.mse.cpu(), expected.mse)
        torch.testing.assert_close(found.reward, expected.reward)
