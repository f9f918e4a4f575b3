"""Every way to choose assignments, against its definition written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.model import VideoTokenizer
from tokenizer.router import Router, RouterConfig
from tokenizer.search.assigners import choose_by_threshold, make_assigner
from tokenizer.search.candidates import candidate_errors, candidate_measures
from tokenizer.search.reward import psnr_of_mse, reward_stats, rewards

CONFIG = RouterConfig(levels=(1, 2, 4, 8), num_frames=12, size=16, width=16, layers=1, heads=2)


def quality_and_lengths(model: VideoTokenizer, clips: Tensor) -> tuple[Tensor, Tensor]:
    quality = psnr_of_mse(candidate_errors(model, clips, "brute"))
    return quality, model.levels.candidates(3).sum(1)


def test_the_same_for_every_clip(model: VideoTokenizer) -> None:
    clips = torch.zeros(2, 3, 12, 16, 16)
    assert make_assigner("8,4,1", model)(clips).tolist() == [[8, 4, 1]] * 2
    assert make_assigner("uniform:2", model)(clips).tolist() == [[2, 2, 2]] * 2


def test_the_router(model: VideoTokenizer, clips: Tensor) -> None:
    router = Router(CONFIG).eval()
    assert torch.equal(make_assigner("router", model, router)(clips), router.assign(clips))
    conditioned = Router(CONFIG.model_copy(update={"preference": True})).eval()
    chosen = make_assigner("router:1.4", model, conditioned)(clips)
    assert torch.equal(chosen, conditioned.assign(clips, w_q=1.4))


def test_best_is_the_highest_reward_of_all(model: VideoTokenizer, clips: Tensor) -> None:
    quality, lengths = quality_and_lengths(model, clips)
    standard = reward_stats(quality, lengths)
    router = Router(CONFIG.model_copy(update={"w_q": 0.7, "standard": standard}))
    for spec, w_q in (("best", 0.7), ("best:1.6", 1.6)):
        wanted = rewards(quality, lengths, standard, w_q).argmax(1)
        assert torch.equal(
            make_assigner(spec, model, router)(clips), model.levels.candidates(3)[wanted]
        )


def test_best_is_of_the_quality_that_the_router_learned(
    model: VideoTokenizer, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router of a perceptual reward: never PSNR against that reward's statistics."""

    class Worst:
        name, checksum = "lpips", "abc"

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return (x - y).abs().amax((1, 3, 4)).mean(1)

    monkeypatch.setattr("tokenizer.search.assigners.load_perceptual", lambda name: Worst())
    quality = -candidate_measures(model, clips, {"lpips": Worst()}, "brute")["lpips"]
    lengths = model.levels.candidates(3).sum(1)
    standard = reward_stats(quality, lengths)
    settings = {"w_q": 1.4, "standard": standard, "quality": "lpips"}
    router = Router(CONFIG.model_copy(update=settings))
    wanted = rewards(quality, lengths, standard, 1.4).argmax(1)
    chosen = make_assigner("best", model, router)(clips)
    assert torch.equal(chosen, model.levels.candidates(3)[wanted])


def test_a_limit_of_tokens(model: VideoTokenizer, clips: Tensor) -> None:
    quality, lengths = quality_and_lengths(model, clips)
    standard = reward_stats(quality, lengths)
    router = Router(CONFIG.model_copy(update={"w_q": 2.0, "standard": standard})).eval()
    inside = rewards(quality, lengths, standard, 2.0).masked_fill(lengths > 7, float("-inf"))
    chosen = make_assigner("best", model, router, max_tokens=7)(clips)
    assert torch.equal(model.levels.index(chosen), inside.argmax(1))
    chosen = make_assigner("router", model, router, max_tokens=7)(clips)
    assert torch.equal(chosen, router.assign(clips, max_tokens=7)) and (chosen.sum(1) <= 7).all()
    with pytest.raises(ValueError, match="at most 2 tokens a clip: the shortest has 3"):
        make_assigner("router", model, router, max_tokens=2)
    with pytest.raises(ValueError, match="takes no limit"):
        make_assigner("uniform:2", model, max_tokens=7)


def test_threshold_is_the_shortest_that_reaches_it(model: VideoTokenizer, clips: Tensor) -> None:
    quality, lengths = quality_and_lengths(model, clips)
    threshold = float(quality.median())
    chosen = model.levels.index(make_assigner(f"threshold:{threshold}", model)(clips))
    for row, got in zip(quality, chosen.tolist(), strict=True):
        reached = [i for i in range(len(lengths)) if row[i] >= threshold]
        if not reached:
            assert lengths[got] == lengths.max()
            continue
        shortest = min(int(lengths[i]) for i in reached)
        assert lengths[got] == shortest and row[got] >= threshold
        assert row[got] == max(row[i] for i in reached if lengths[i] == shortest)
    none = choose_by_threshold(quality, lengths, 1000.0)
    assert (lengths[none] == lengths.max()).all()


@pytest.mark.parametrize("start", [5.0, 31.0, 60.0])
def test_of_equally_short_ones_the_best_above_31_db(start: float) -> None:
    quality = torch.tensor([[start, start + 1, start + 2, start + 3]], dtype=torch.float64)
    lengths = torch.tensor([1024, 1024, 1024, 2048])
    assert choose_by_threshold(quality, lengths, start).tolist() == [2]
    assert choose_by_threshold(quality, lengths, start + 2.5).tolist() == [3]


def test_threshold_of_a_named_quality(
    model: VideoTokenizer, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perceptual distance is to be at most the value, never taken for a PSNR."""

    class Worst:
        name, checksum = "lpips", "abc"

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return (x - y).abs().amax((1, 3, 4)).mean(1)

    monkeypatch.setattr("tokenizer.search.assigners.load_perceptual", lambda name: Worst())
    distance = candidate_measures(model, clips, {"lpips": Worst()}, "brute")["lpips"]
    limit = float(distance.median())
    chosen = model.levels.index(make_assigner(f"threshold:lpips:{limit!r}", model)(clips))
    lengths = model.levels.candidates(3).sum(1)
    for row, got in zip(distance, chosen.tolist(), strict=True):
        reached = [i for i in range(len(lengths)) if row[i] <= limit]
        if reached:
            shortest = min(int(lengths[i]) for i in reached)
            assert lengths[got] == shortest
            assert row[got] == min(row[i] for i in reached if lengths[i] == shortest)
        else:
            assert lengths[got] == lengths.max()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("router", "needs a router"),
        ("best", "needs a router"),
        ("uniform:3", r"\[3\] are not levels"),
        ("uniform:", "choose 'router'"),
        ("uniform:2,2,2", "choose 'router'"),
        ("2", "choose 'router'"),
        ("1,2", "has 2 levels; a clip has 3"),
        ("router:3", "outside"),
        ("best:x", "not a finite number"),
        ("threshold:", "not a finite number"),
        ("threshold:vmaf:90", "no quality 'vmaf'; there are psnr, moving_psnr, lpips"),
    ],
)
def test_what_cannot_be_is_named(model: VideoTokenizer, spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_assigner(spec, model)


def test_routers_that_do_not_fit_are_refused(model: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="are not the tokenizer's"):
        make_assigner("router", model, Router(CONFIG.model_copy(update={"levels": (1, 2)})))
    with pytest.raises(ValueError, match=r"knows w_q 1\.2 only"):
        make_assigner("router:1.5", model, Router(CONFIG))
    with pytest.raises(ValueError, match="statistics"):
        make_assigner("best", model, Router(CONFIG))
