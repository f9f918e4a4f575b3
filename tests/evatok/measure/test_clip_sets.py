"""Rows of the tables, against the same numbers worked out plainly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.encoders.nano import NanoFeatures
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.quality import psnr
from evatok.hub import Models
from evatok.measure.clip_sets import (
    ClipSet,
    Network,
    accuracy,
    gate,
    held_out_sets,
    prediction_rows,
    reconstruct_set,
    sampling_rows,
    tokenizer_rows,
    uniform_rows,
)
from generator.inference.requests import SamplingConfig
from tokenizer.search.assigners import make_assigner
from video.dataset import DataConfig, SourceConfig


@pytest.fixture(scope="module")
def sets(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ClipSet]:
    data = DataConfig(
        sources=(
            SourceConfig(kind="ucf101", root=footage),
            SourceConfig(kind="ucf101", root=Path("not-here"), optional=True),
        ),
        size=32,
        cache_dir=tmp_path_factory.mktemp("cache"),
        workers=1,
    )
    return held_out_sets(data, 6)


def test_held_out_sets(sets: list[ClipSet]) -> None:
    assert [one.name for one in sets] == ["squares"]
    assert sets[0].clips.shape == (6, 3, 16, 32, 32) and sets[0].clips.dtype == torch.uint8
    assert sets[0].class_names == ["Left", "Right"] and len(sets[0].labels) == 6


def test_features_are_taken_once(toy: Models, sets: list[ClipSet]) -> None:
    calls: list[int] = []
    network = NanoFeatures(toy.features)

    class Counting:
        name, dim, checksum = "counting", network.dim, "x"

        def __call__(self, clips: torch.Tensor) -> torch.Tensor:
            calls.append(len(clips))
            return network(clips)

    part, whole = sets[0].features(Counting(), 4), sets[0].features(Counting())
    assert calls == [4, 2] and len(part) == 4 and len(whole) == 6
    expected = network(torch.cat(list(sets[0].batches())))
    assert torch.allclose(whole, expected, atol=1e-5)


def test_reconstructed_rows(toy: Models, sets: list[ClipSet]) -> None:
    rows = tokenizer_rows(toy, sets, [Network(NanoFeatures(toy.features), 5)])
    still, *rows = rows
    clips = torch.cat(list(sets[0].batches()))
    expected = psnr(clips[:, :, :1].expand_as(clips), clips).mean()
    assert still["psnr"] == pytest.approx(float(expected)) and still["fvd[nano]"] > 0
    assert still["tokenizer"] == "first frame stands still" and still["mean_tokens"] is None
    assert [row["tokenizer"] for row in rows] == [
        "uniform-2 (proxy)", "router (proxy)", "router (final)",
    ]  # fmt: skip
    assert rows[0]["mean_tokens"] == 8 and rows[0]["clips[nano]"] == 5
    done = reconstruct_set(toy.proxy, make_assigner("uniform:2", toy.proxy), sets[0])
    network = NanoFeatures(toy.features)
    both = [torch.cat(list(one.batches()))[:5] for one in (sets[0], done.clips)]
    expected = frechet_distance(network(both[0]), network(both[1]))
    assert rows[0]["fvd[nano]"] == pytest.approx(expected, rel=1e-3)
    assert 0 < rows[0]["codebook_use"] <= 1 and rows[0]["num_clips"] == 6


def test_uniform_rows_and_gate(toy: Models, sets: list[ClipSet]) -> None:
    rows = uniform_rows(toy.proxy, sets)
    assert [(row["level"], row["mean_tokens"]) for row in rows] == [(1, 4), (2, 8), (4, 16)]
    with pytest.raises(ValueError, match="no set 'arcade' to judge"):
        gate(rows, "arcade", 2.0)


@pytest.mark.parametrize(
    ("values", "passed"),
    [((20, 21, 22.5), True), ((20, 21, 21.5), False), ((20, 25, 24), False), ((20, 20, 23), False)],
)
def test_gate(values: tuple[float, ...], passed: bool) -> None:
    rows = [{"set": "a", "psnr": value} for value in values] + [{"set": "b", "psnr": 0.0}]
    assert gate(rows, "a", 2.0)["passed"] is passed


def test_sampling_and_prediction_rows(toy: Models, sets: list[ClipSet]) -> None:
    networks = [Network(NanoFeatures(toy.features))]
    rows = sampling_rows(toy, sets, networks, SamplingConfig(), (1.0, 2.0), 0)
    assert [row["guidance"] for row in rows] == [1.0, 2.0]
    for row in rows:
        assert row["num_clips"] == 6 and 4 <= row["mean_tokens"] <= 16
        assert 0 <= row["accuracy"] <= 1 and row["fvd[nano]"] > 0
    rows = prediction_rows(toy, sets, networks, SamplingConfig(), 0)
    assert [row["prediction"] for row in rows] == ["generator", "last frame stands still"]
    clips = torch.cat(list(sets[0].batches()))
    error = (clips[:, :, 5:] - clips[:, :, 4:5]).square().mean((1, 2, 3, 4))
    assert rows[1]["psnr"] == pytest.approx(float((10 * (4 / error).log10()).mean()), abs=1e-3)
    assert rows[1]["moving_psnr"] < rows[1]["psnr"]  # what stands still is wrong where it moves


def test_accuracy_goes_by_names(toy: Models, sets: list[ClipSet]) -> None:
    one = sets[0]
    renamed = ClipSet("x", one.clips, one.labels, ["Right", "Left"])
    first, second = accuracy(toy.features, one), accuracy(toy.features, renamed)
    assert first is not None and second is not None and first + second == pytest.approx(1)
    assert accuracy(toy.features, ClipSet("x", one.clips, one.labels, ["A", "B"])) is None
