"""The router: prefixes, files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenizer.router import Router, RouterConfig
from tokenizer.training.initialization import initialise_router


@pytest.fixture
def router() -> Router:
    torch.manual_seed(0)
    config = RouterConfig(
        levels=(1, 2, 4), num_frames=12, size=16, patch=(4, 8, 8), width=32, layers=2, heads=2
    )
    return Router(config).eval()


def test_a_class_for_every_candidate(router: Router) -> None:
    clips = torch.rand(3, 3, 12, 16, 16) * 2 - 1
    logits = router(clips)
    assert logits.shape == (3, 27)
    chosen = router.assign(clips)
    assert torch.equal(router.levels.index(chosen), logits.argmax(-1))


def test_the_best_with_a_prefix(router: Router) -> None:
    clips = torch.rand(4, 3, 12, 16, 16) * 2 - 1
    chosen = router.assign(clips, (4, 1))
    assert (chosen[:, :2] == torch.tensor([4, 1])).all()
    logits = router(clips).view(4, 3, 3, 3)[:, 2, 0]  # ranks of the prefix
    assert torch.equal(router.levels.ranks(chosen)[:, 2], logits.argmax(-1))


def test_at_most_so_many_tokens(router: Router) -> None:
    clips = torch.rand(6, 3, 12, 16, 16) * 2 - 1
    candidates = router.levels.candidates(3)
    logits = router(clips)
    for limit in (3, 5, 9):
        chosen = router.assign(clips, max_tokens=limit)
        assert (chosen.sum(1) <= limit).all()
        left = torch.where(candidates.sum(1) <= limit, logits, float("-inf"))
        assert torch.equal(chosen, candidates[left.argmax(1)])
    assert router.assign(clips, (2,), max_tokens=4).tolist() == [[2, 1, 1]] * 6
    with pytest.raises(ValueError, match="at most 2 tokens: the shortest has 3"):
        router.assign(clips, max_tokens=2)
    with pytest.raises(ValueError, match=r"begins with \(4,\) has at most 5 .* shortest has 6"):
        router.assign(clips, (4,), max_tokens=5)


def test_the_preference_is_an_input(router: Router, tmp_path: Path) -> None:
    clips = torch.rand(2, 3, 12, 16, 16) * 2 - 1
    with pytest.raises(ValueError, match="knows one w_q only"):
        router.assign(clips, w_q=1.0)
    torch.manual_seed(0)
    conditioned = Router(router.config.model_copy(update={"preference": True, "w_q": 0.8})).eval()
    low, high = conditioned(clips, torch.full((2,), 0.4)), conditioned(clips, torch.full((2,), 2.0))
    assert not torch.allclose(low, high)
    assert torch.equal(conditioned(clips), conditioned(clips, torch.full((2,), 0.8)))
    mixed = conditioned(clips, torch.tensor([0.4, 2.0]))
    torch.testing.assert_close(mixed, torch.stack([low[0], high[1]]))
    with pytest.raises(ValueError, match="outside"):
        conditioned.assign(clips, w_q=2.5)
    conditioned.save_pretrained(tmp_path)
    again = Router.from_pretrained(tmp_path).eval()
    assert again.config == conditioned.config and torch.equal(again(clips), conditioned(clips))


def test_one_clip_does_not_see_another(router: Router) -> None:
    """A clip's assignment must not depend on what shares its batch."""
    clips = torch.rand(4, 3, 12, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(router(clips)[2:3], router(clips[2:3]), atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_it_is_the_same(router: Router, tmp_path: Path) -> None:
    router.save_pretrained(tmp_path)
    again = Router.from_pretrained(tmp_path).eval()
    clips = torch.rand(2, 3, 12, 16, 16) * 2 - 1
    assert again.config == router.config and torch.equal(again(clips), router(clips))


def test_wrong_clips_and_sizes_are_refused(router: Router) -> None:
    with pytest.raises(ValueError, match="are not"):
        router(torch.zeros(1, 3, 8, 16, 16))
    with pytest.raises(ValueError, match="not divisible by heads"):
        Router(RouterConfig(levels=(1,), width=30, heads=4))


def test_starts_from_principal_components(router: Router) -> None:
    """The patch layer reads uncorrelated components, largest first, spread as √ of their own."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.nn.functional.interpolate(  # smooth, so that components differ in size
        torch.rand(16, 3, 12, 4, 4, generator=generator) * 2 - 1, scale_factor=(1, 4, 4)
    )
    initialise_router(router, clips)
    patches = router.patches(clips).flatten(0, 1)
    read = router.patch_in(patches)
    covariance = torch.cov(read.T, correction=0)
    spread = covariance.diagonal().sqrt()
    assert torch.allclose(read.mean(0), torch.zeros(32), atol=1e-4)
    assert torch.allclose(covariance, spread.square().diag(), atol=1e-4)
    std = torch.linalg.svdvals((patches - patches.mean(0)) / len(patches) ** 0.5)[:32]
    assert torch.allclose(spread / spread[0], (std / std[0]).sqrt(), atol=1e-4)
