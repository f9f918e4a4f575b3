"""Scoring of clips."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evaluation.scoring.score import score_clips


class Means:
    """A network that anyone can compute: the mean of each channel in each half of the frames."""

    def __init__(self, name: str = "means", scale: float = 1.0) -> None:
        self.name, self.dim, self.checksum, self.scale = name, 6, f"sum-{scale}", scale
        self.batches: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        halves = clips.tensor_split(2, dim=2)
        return torch.cat([half.mean((2, 3, 4)) for half in halves], 1) * self.scale


def clips(seed: int, count: int = 12, frames: int = 4, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shade = torch.rand(count, 3, frames, 1, 1, generator=generator) * 2 - 1
    return shade.expand(-1, -1, -1, size, size).clone()


def test_result_says_how_it_was_made() -> None:
    real, fake = clips(1), clips(2, count=9) * 0.8
    one, ten = Means("one"), Means("ten", 10.0)
    seen: list[tuple[str, int]] = []
    result = score_clips(
        real, fake, [one, ten], batch_size=5, progress=lambda side, done: seen.append((side, done))
    )
    expected = frechet_distance(Means()(real), Means()(fake))
    assert result["fvd[one]"] == expected
    assert result["fvd[ten]"] == pytest.approx(100 * expected, rel=1e-5)
    assert {key: value for key, value in result.items() if not key.startswith("fvd")} == {
        "num_real": 12,
        "num_fake": 9,
        "num_frames": 4,
        "size": [8, 8],
        "biased": True,
        "networks": {"one": "sum-1.0", "ten": "sum-10.0"},
    }
    assert one.batches == ten.batches == [5, 5, 2, 5, 4]
    assert seen == [("real", 5), ("real", 10), ("real", 12), ("fake", 5), ("fake", 9)]
    assert json.loads(json.dumps(result)) == result


def test_how_clips_come_does_not_matter() -> None:
    """One tensor, a generator of clips, batches of any size: the same number."""
    real, fake = clips(1), clips(2)

    def one_by_one() -> Iterator[Tensor]:
        yield from real

    whole = score_clips(real, fake, [Means()], biased=False)
    parts = score_clips(one_by_one(), fake.split(5), [Means()], biased=False, batch_size=7)
    assert parts["fvd[means]"] == pytest.approx(whole["fvd[means]"], rel=1e-6)
    assert whole["fvd[means]"] == frechet_distance(Means()(real), Means()(fake), biased=False)
    assert whole["biased"] is False
    assert score_clips(real, real.flip(0), [Means()])["fvd[means]"] == pytest.approx(0, abs=1e-9)


def test_refusals() -> None:
    x, network = clips(1), Means()
    with pytest.raises(ValueError, match="no feature network"):
        score_clips(x, x, [])
    with pytest.raises(ValueError, match="the fake side has 1 clips"):
        score_clips(x, x[:1], [network])
    with pytest.raises(ValueError, match=r"several shapes.*\(3, 4, 8, 8\), \(3, 4, 9, 9\)"):
        score_clips(x, clips(1, size=9), [network])
    with pytest.raises(ValueError, match=r"not \(4, 3, 8, 8\)"):
        score_clips(x.transpose(1, 2), x, [network])
    wrong = x.clone()
    wrong[7] = (wrong[7] + 1) * 127.5
    with pytest.raises(ValueError, match="clip 7 of the fake side reaches from"):
        score_clips(x, wrong, [network], batch_size=5)
    wrong[7] = torch.nan
    with pytest.raises(ValueError, match="clip 7 of the real side"):
        score_clips(wrong, x, [network])
