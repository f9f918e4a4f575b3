"""Decisions that no batch changes."""

from __future__ import annotations

import pytest
import torch

from tokenizer.coding import exact
from tokenizer.coding.exact import ExactEncoder
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router, RouterConfig

LEVELS = (1, 2, 4)


@pytest.fixture
def encoder() -> ExactEncoder:
    torch.manual_seed(0)
    former = QFormerConfig(width=16, layers=1, heads=2)
    config = TokenizerConfig(
        levels=LEVELS, num_frames=8, size=16, encoder=former, decoder=former, codebook_size=64
    )
    router = RouterConfig(levels=LEVELS, num_frames=8, size=16, width=16, layers=1, heads=2)
    return ExactEncoder(VideoTokenizer(config).eval(), Router(router).eval())


def test_tokens_and_assignments_are_those_of_one_clip_alone(encoder: ExactEncoder) -> None:
    torch.manual_seed(1)
    clips = torch.rand(40, 3, 8, 16, 16) * 2 - 1
    assignment = encoder.assign(clips)
    tokens = encoder.encode(clips, assignment)
    alone = [
        encoder.encode(clip, row)
        for clip, row in zip(clips.split(1), assignment.split(1), strict=True)
    ]
    assert torch.equal(tokens.ids, torch.cat([one.ids for one in alone]))
    assert torch.equal(tokens.ids, encoder.model.encode(clips, assignment).ids)
    assert encoder.router is not None
    assert torch.equal(assignment, encoder.router.assign(clips))
    limited = encoder.assign(clips, max_tokens=3)
    assert torch.equal(limited, encoder.router.assign(clips, max_tokens=3))


def test_near_ties_are_decided_in_float64(
    encoder: ExactEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two codes that differ by less than float32 can tell: the double one decides."""
    torch.manual_seed(2)
    clips = torch.rand(6, 3, 8, 16, 16) * 2 - 1
    assignment = torch.full((6, 2), 4)
    with torch.no_grad():
        book = encoder.model.quantizer.codebook
        book[1::2] = book[::2] + 1e-7 * torch.randn_like(book[::2])
    expected = encoder._nearest(encoder._model64, clips.double(), assignment)[0]
    assert torch.equal(encoder.encode(clips, assignment).ids, expected)
    monkeypatch.setattr(exact, "CODE_MARGIN", 0.0)  # without it float32 decides, and errs
    assert not torch.equal(encoder.encode(clips, assignment).ids, expected)
