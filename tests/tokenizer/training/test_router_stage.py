"""Scores of a router's choices."""

from __future__ import annotations

import pytest
import torch

from tokenizer.router import Router, RouterConfig
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
