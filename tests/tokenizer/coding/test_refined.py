"""Searched tokens: no worse than the encoder's, and the best of a slow search of a tiny code."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from evaluation.metrics.quality import moving
from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import block_causal_mask
from tokenizer.coding import refined
from tokenizer.coding.refined import refine
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.tokens import Tokens


def make_model(codebook_size: int) -> VideoTokenizer:
    """A decoder whose pictures depend on its codes, which a fresh one's hardly do."""
    torch.manual_seed(0)
    former = QFormerConfig(width=16, layers=1, heads=2)
    config = TokenizerConfig(
        levels=(1, 2, 4),
        num_frames=8,
        size=16,
        encoder=former,
        decoder=former,
        codebook_size=codebook_size,
    )
    model = VideoTokenizer(config).eval()
    with torch.no_grad():
        model.code_out.weight.mul_(20)
    return model


@pytest.fixture
def model() -> VideoTokenizer:
    return make_model(64)


@pytest.fixture
def clips() -> Tensor:
    """Five clips that move a little."""
    torch.manual_seed(1)
    ramp = torch.linspace(-1, 1, 16).expand(5, 3, 8, 16, 16)
    return (ramp * torch.rand(5, 3, 1, 1, 1) + 0.3 * torch.rand(5, 1, 8, 1, 16)).clamp(-1, 1)


ASSIGNMENT = torch.tensor([[4, 1], [1, 2], [4, 4], [2, 2], [1, 1]])


def errors(model: VideoTokenizer, clips: Tensor, tokens: Tokens, motion: float = 0.0) -> Tensor:
    """(B,) weighted mean squared errors, written out."""
    weights = 1 + motion * moving(clips).double()
    square = (model.decode(tokens).detach().clamp(-1, 1) - clips).double().square().mean(1)
    return (square * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))


@pytest.mark.parametrize("motion", [0.0, 4.0])
def test_errors_fall_and_counts_stay(model: VideoTokenizer, clips: Tensor, motion: float) -> None:
    tokens = model.encode(clips, ASSIGNMENT)
    ids = tokens.ids.clone()
    better = refine(model, clips, tokens, 30, motion)
    assert torch.equal(better.assignment, ASSIGNMENT) and better.ids.dtype == tokens.ids.dtype
    assert torch.equal(tokens.ids, ids)  # what was given stays
    before, after = (errors(model, clips, x, motion) for x in (tokens, better))
    assert (after <= before * (1 + 1e-6)).all() and after.mean() < 0.99 * before.mean()
    assert refine(model, clips, tokens, 0) is tokens
    assert all(p.grad is None for p in model.parameters())


def test_the_best_of_all_tokens_is_kept(clips: Tensor) -> None:
    """Four codes, two blocks of one or two tokens: all 4^3 sequences are tried."""
    model = make_model(4)
    assignment = torch.tensor([[2, 1]]).expand(5, 2)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    least = torch.stack([errors(model, clips, Tokens(ids.repeat(5), assignment)) for ids in every])
    best = Tokens(every[least.argmin(0)].flatten(), assignment)
    better = refine(model, clips, best, 20, 0.0)
    assert torch.equal(better.ids, best.ids)  # nothing is better
    found = errors(model, clips, refine(model, clips, model.encode(clips, assignment), 60, 0.0))
    first = errors(model, clips, model.encode(clips, assignment))
    gap = (first - least.amin(0)).sum()
    assert gap > 0 and (found - least.amin(0)).sum() < 0.5 * gap


def test_clips_do_not_disturb_each_other(model: VideoTokenizer, clips: Tensor) -> None:
    """A clip is refined as it is alone; rounding does not matter in a few steps of a toy."""
    tokens = model.encode(clips, ASSIGNMENT)
    together = refine(model, clips, tokens, 12)
    assert not torch.equal(together.ids, tokens.ids)
    alone = [
        refine(model, clip, model.encode(clip, row), 12).ids
        for clip, row in zip(clips.split(1), ASSIGNMENT.split(1), strict=True)
    ]
    assert torch.equal(together.ids, torch.cat(alone))


def test_few_clips_at_once_where_codes_are_many(
    model: VideoTokenizer, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded, and the tokens are the same."""
    tokens = model.encode(clips, ASSIGNMENT)
    whole = refine(model, clips, tokens, 12)
    monkeypatch.setattr(refined, "MEMORY", 2 * refined._bytes_of_clip(model, ASSIGNMENT))
    found = refine(model, clips, tokens, 12)
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.assignment, whole.assignment)


def test_no_gradient_mode_is_in_the_way(model: VideoTokenizer, clips: Tensor) -> None:
    found = []
    block_causal_mask.cache_clear()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():  # what the first keeps, the others get
            tokens = model.encode(clips, ASSIGNMENT)
            found.append(refine(model, clips + 0, tokens, 5).ids)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_clip_without_error_and_a_still_one(model: VideoTokenizer, clips: Tensor) -> None:
    """Nothing is divided by nothing: black that is decoded as black, and pictures."""
    with torch.no_grad():
        model.patch_head.weight.zero_()
        model.patch_head.bias.fill_(-2)
    black = torch.full_like(clips, -1.0)
    tokens = model.encode(black, ASSIGNMENT)
    assert float(errors(model, black, tokens).max()) == 0
    assert torch.equal(refine(model, black, tokens, 12).ids, tokens.ids)
    model = make_model(64)
    pictures = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    tokens = model.encode(pictures, ASSIGNMENT[:, :1])
    better = refine(model, pictures, tokens, 30)
    assert errors(model, pictures, better).mean() < errors(model, pictures, tokens).mean()


def test_mixtures_are_float32_whatever_autocast_says(model: VideoTokenizer) -> None:
    torch.manual_seed(3)
    vectors, codes = torch.randn(9, 8), model.quantizer.lookup(torch.arange(64))
    expected = refined._mixtures(vectors, codes, 0.001)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(refined._mixtures(vectors, codes, 0.001), expected)
    nearest = codes[model.quantizer.nearest(torch.nn.functional.normalize(vectors, dim=-1))]
    torch.testing.assert_close(refined._mixtures(vectors, codes, 1e-5), nearest)


def test_refused(model: VideoTokenizer, clips: Tensor) -> None:
    tokens = model.encode(clips, ASSIGNMENT)
    with pytest.raises(EvatokError, match="-1 steps of refinement"):
        refine(model, clips, tokens, -1)
    with pytest.raises(EvatokError, match="clips"):
        refine(model, clips[..., :8], tokens, 3)
