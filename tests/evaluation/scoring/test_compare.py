"""Several sets against one: order, intervals, and what is within chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.metrics.frechet import frechet_distance
from evaluation.scoring.compare import Side, compared
from evatok.cli.app import main

DIM = 6


def draw(seed: int, count: int, shift: float = 0.0, names: str = "") -> Side:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.standard_normal((count, DIM)) + shift)
    return Side(features, [f"{names or seed}/{number}" for number in range(count)])


def test_what_differs_and_what_does_not() -> None:
    real = draw(0, 300)
    sides = {"far": draw(1, 300, 0.8), "near": draw(2, 300, 0.3), "as near": draw(5, 280, 0.3)}
    found = compared(real, sides)
    assert found.num_clips == 280 and list(found.values)[2] == "far"
    best, second = list(found.values)[:2]
    assert found.is_chance(best, second) and not found.is_chance(best, "far")
    assert found.verdict("far").startswith(f"farther than {best} by ")
    assert found.verdict(second).startswith(f"within chance of {best} (difference ")
    assert found.verdict(best) == f"nearest, but {second} is within chance"
    assert found.values["as near"] == frechet_distance(real.features, sides["as near"].features)


def test_a_false_alarm_is_rare_and_reconstructions_need_few_clips() -> None:
    """Of two sets of one law few are told apart; two codecs of the same clips are."""
    alarms = 0
    for seed in range(40):
        sides = {name: draw(10_000 + 10 * seed + n, 60, 0.4) for n, name in enumerate("ab")}
        found = compared(draw(9000 + seed, 60), sides, seed=seed)
        alarms += not found.is_chance(*found.values)
    assert alarms <= 4
    clips = draw(1, 120, names="clip")
    rng = np.random.default_rng(2)
    sides = {
        name: Side(clips.features + size * torch.from_numpy(rng.standard_normal((120, DIM))), names)
        for name, size, names in (("fine", 0.3, clips.names), ("coarse", 0.6, clips.names))
    }
    paired = compared(clips, sides)
    assert not paired.is_chance("fine", "coarse")
    apart = {name: Side(side.features, [f"{name}{n}" for n in side.names])
             for name, side in sides.items()}  # fmt: skip
    assert (
        compared(clips, apart).differences["fine", "coarse"][1]
        > 2 * (paired.differences["fine", "coarse"][1])
    )


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 200, (8, 9, 1, 1, 3)) + rng.integers(0, 50, (8, 9, 16, 16, 3))
    for name, change in (("real", 0), ("a", 2), ("b", 40)):
        (tmp_path / name).mkdir()
        noise = rng.integers(0, change + 1, clips.shape)
        changed = (clips + noise).clip(0, 255).astype(np.uint8)
        np.savez(tmp_path / name / "clips.npz", x=changed[: 8 - (name == "b")])
    return [str(tmp_path / name) for name in ("real", "a", "b")]


def test_the_command(sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *sets, "--frames", "9", "--size", "16", "--no-cache"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in result["compared"]] == ["a", "b"]
    assert {row["clips"] for row in result["compared"]} == {result["num_clips"]} == {7}
    (pair,) = result["differences"]
    assert (pair["near"], pair["far"]) == ("a", "b") and pair["low"] < pair["high"]
    assert pair["within_chance"] == (pair["low"] <= 0)
    assert main(words) == 0
    assert "nearest" in capsys.readouterr().out
    for given, said in (
        (sets[:2], "one set is compared with nothing"),
        ([*sets, sets[1]], "is given twice"),
        ([*sets, str(tmp_path / "none")], "no file or folder"),
    ):
        assert main(["compare", *given, *words[4:]]) == 2
        told = capsys.readouterr().err.splitlines()
        assert said in told[-1]
