"""Scores of a router's choices."""

from __future__ import annotations

import pytest
import torch

from evatok.core.errors import EvatokError
from tokenizer.router import Router, RouterConfig
from tokenizer.training.initialization import initialise_router_from
from tokenizer.training.router_stage import router_scores


@pytest.mark.parametrize("num_frames", [4, 8])
def test_scores_of_few_and_many_candidates(num_frames: int) -> None:
    """One block of three levels has three candidates: one of five is always the best."""
    config = RouterConfig(
        levels=(1, 2, 4), num_frames=num_frames, size=16, width=16, layers=1, heads=2
    )
    router = Router(config)
    count = router.levels.num_candidates(router.num_blocks)
    table = torch.arange(count).float().expand(4, count)  # the last is the best of each clip
    scores = router_scores(router, -table, table)  # which the router thinks the worst
    assert scores["top1"] == 0
    assert scores["top5"] == (100 if count <= 5 else 0)


SMALL = RouterConfig(levels=(1, 2, 4), num_frames=8, size=16, width=16, layers=1, heads=2)


def router(seed: int, **changes: object) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Router(SMALL.model_copy(update=changes))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_router_starts_from_another(ours: bool, theirs: bool) -> None:
    """It says the same, of every w_q that both know."""
    clips = torch.rand(2, 3, 8, 16, 16) * 2 - 1
    source = router(1, preference=theirs, w_q=1.4)
    made = router(2, preference=ours)
    initialise_router_from(made, source)
    asked = torch.tensor([1.4, 0.6 if ours and theirs else 1.4])
    said = [net(clips, asked) if has_it else net(clips)
            for net, has_it in ((made, ours), (source, theirs))]  # fmt: skip
    assert torch.allclose(said[0], said[1], atol=1e-5)


def test_a_router_of_other_levels_is_no_start() -> None:
    with pytest.raises(EvatokError, match=r"that router has another levels and width$"):
        initialise_router_from(router(0), router(0, levels=(1, 2, 8), width=32))
