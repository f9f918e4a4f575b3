"""Counted operations against those that torch sees going by."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evatok.plan import flops as costs
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from tokenizer.attention import clip_groups as masks
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.router import Router, RouterConfig
from tokenizer.search.candidates import drawn_candidates

LEVELS = (2, 4, 8, 16)


def share(counts: dict[str, int], kind: str) -> int:
    return sum(v for name, v in counts.items() if name.startswith(f"{kind}/"))


@pytest.mark.parametrize("entropy", [0.0, 0.02])
@pytest.mark.parametrize("assignment", [(16, 4, 2, 2), (4, 4, 4, 4), (2, 8, 16, 4)])
def test_tokenizer(
    assignment: tuple[int, ...], entropy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "SLICE_SCORES", 0)  # as at paper size: by blocks, nothing masked
    model = VideoTokenizer(
        TokenizerConfig.model_validate(
            {
                "levels": LEVELS,
                "size": 32,
                "encoder": {"width": 32, "layers": 2, "heads": 2},
                "decoder": {"width": 48, "layers": 3, "heads": 3},
                "codebook_size": 64,
                "entropy_temperature": 0.01 if entropy else 0.0,
            }
        )
    ).train()
    clips = torch.rand(1, 3, 16, 32, 32) * 2 - 1
    with FlopCounterMode(display=False) as forward:
        result = model(clips, torch.tensor([assignment]))
    with FlopCounterMode(display=False) as backward:
        tokenizer_loss(result, clips, LossConfig(entropy=entropy))[0].backward()
    counts = costs.clip_flops(model, assignment, has_entropy=bool(entropy))
    once = 2 * 4 * sum(LEVELS) * model.num_cells * (32 + 48)  # places, a batch
    assert share(counts, "forward") + once == pytest.approx(forward.get_total_flops(), rel=0.01)
    total = forward.get_total_flops() + backward.get_total_flops()
    assert share(counts, "train") + 2 * once == pytest.approx(total, rel=0.01)


def test_router() -> None:
    model = Router(RouterConfig(levels=LEVELS, size=32, width=32, layers=2, heads=2))
    with FlopCounterMode(display=False) as seen:
        model(torch.rand(1, 3, 16, 32, 32)).sum().backward()
    assert share(costs.router_flops(model), "train") == pytest.approx(
        seen.get_total_flops(), rel=0.01
    )


def test_gpt() -> None:
    vocabulary = Vocabulary(codebook_size=64, levels=LEVELS, num_blocks=4)
    model = GPT(GPTConfig(width=32, layers=2, heads=2, hidden=80), vocabulary)
    ids, places = torch.randint(60, (30,)), torch.arange(5, 29)
    with FlopCounterMode(display=False) as seen:
        model(ids, torch.tensor([0, 30], dtype=torch.int32), places).sum().backward()
    counts = costs.sequence_flops(model, 30, len(places))
    assert share(counts, "train") == pytest.approx(seen.get_total_flops(), rel=0.01)


def test_the_tree_costs_less_than_every_candidate() -> None:
    former = {"width": 32, "layers": 1, "heads": 2}
    model = VideoTokenizer(
        TokenizerConfig.model_validate(
            {"levels": LEVELS, "size": 32, "encoder": former, "decoder": former}
        )
    )
    candidates = model.levels.candidates(4).tolist()
    brute = sum(share(costs.clip_flops(model, a), "forward") for a in candidates)
    assert 0.25 < costs.search_flops(model) / brute < 0.45


def test_the_search_of_drawn_candidates() -> None:
    """The expected share of prefixes is what draws of the search walk."""
    former = {"width": 32, "layers": 1, "heads": 2}
    model = VideoTokenizer(
        TokenizerConfig.model_validate(
            {"levels": LEVELS, "size": 32, "encoder": former, "decoder": former}
        )
    )
    base = len(LEVELS)
    walked = torch.zeros(4)
    for batch in range(300):
        drawn = drawn_candidates(base**4, 20, 0, batch)
        assert drawn is not None
        walked += torch.tensor([len((drawn // base ** (3 - d)).unique()) for d in range(4)])
    seen = walked / 300 / torch.tensor([base ** (d + 1) for d in range(4)])
    assert seen.tolist() == pytest.approx(costs.prefix_shares(model, 20), rel=0.02)
    assert costs.prefix_shares(model) == [1, 1, 1, 1]
    assert costs.search_flops(model, 20) < 0.3 * costs.search_flops(model)
