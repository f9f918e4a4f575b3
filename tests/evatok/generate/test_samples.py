"""Samples and predictions: reproducible, independent of what else is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evatok.generate.samples import (
    decode,
    find_classes,
    predict_clips,
    predict_file,
    request_seed,
    sample_labels,
)
from evatok.hub import Models
from generator.inference.requests import SamplingConfig
from tokenizer.tokens import Tokens
from video.decoding.container import VideoError
from video.reading import read_frames
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]
GUIDED = SamplingConfig(guidance=2.0)


def test_a_sample_does_not_depend_on_the_others(toy: Models) -> None:
    many, tokens = sample_labels(toy, [0, 1, 1], [0, 0, 1], 5, GUIDED)
    alone, one = sample_labels(toy, [1], [1], 5, GUIDED)
    assert torch.equal(one.ids, torch.cat(tokens.blocks()[2]))
    assert torch.allclose(many[2], alone[0], atol=1e-5)
    other, _ = sample_labels(toy, [1], [1], 6, GUIDED)
    assert not torch.equal(other, alone)


def test_decode_in_parts(toy: Models) -> None:
    blocks = [[torch.arange(k) for k in row] for row in ((1, 2, 4, 1), (4, 4, 1, 2), (2, 2, 2, 2))]
    tokens = Tokens.from_blocks(blocks)
    whole = toy.final.decode(tokens).clamp(-1, 1)
    assert torch.allclose(decode(toy.final, tokens, part=2), whole, atol=1e-5)


def test_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match="no class Up; there are Left, Right"):
        find_classes(("Left", "Right"), ["left", "Up"])
    with pytest.raises(ValueError, match="has no classes"):
        find_classes((), [])


def test_predictions_see_only_the_given_frames(toy: Models) -> None:
    random = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 3, 16, 32, 32, generator=random) * 2 - 1
    changed = clips.clone()
    changed[:, :, 5:] = 0
    settings = SamplingConfig()
    a, tokens = predict_clips(toy, clips, [1, 2], settings)
    b, _ = predict_clips(toy, changed, [1, 2], settings)
    assert torch.equal(a, b) and a.shape == clips.shape
    assert tokens.assignment[:, 0].tolist() == [4, 4]


def test_predict_file(toy: Models, square: Square, tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", square(30, 48, 64, 1), 10)
    result = predict_file(
        toy, tmp_path / "long.mp4", 2, 0, SamplingConfig(), tmp_path / "out", start=3
    )
    assert result["given_frames"] == 5 and result["given_blocks"] == 1
    assert all(row["psnr"] > 0 for row in result["predictions"])
    assert len(read_frames(result["predictions"][0]["output"])) == 16

    write_video(tmp_path / "short.mp4", square(6, 48, 64, 1), 10)
    short = predict_file(toy, tmp_path / "short.mp4", 1, 0, SamplingConfig(), tmp_path / "out")
    assert short["predictions"][0]["psnr"] is None

    with pytest.raises(ValueError, match=r"has 2 frames from 4 on; .* starts from 5"):
        predict_file(toy, tmp_path / "short.mp4", 1, 0, SamplingConfig(), tmp_path / "no", start=4)
    assert not (tmp_path / "no").exists()


def test_predicting_a_damaged_file(toy: Models, assets: Path, tmp_path: Path) -> None:
    """Refused, although the frames that are needed are there; or told beside the predictions."""
    path, free = assets / "odd" / "trunc_fast.mp4", SamplingConfig()
    with pytest.raises(VideoError, match="damaged: 20 of 40 frames"):
        predict_file(toy, path, 1, 0, free, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    result = predict_file(toy, path, 1, 0, free, tmp_path / "out", allow_damaged=True)
    assert "damaged: 20 of 40 frames" in result["damaged"]
    whole = predict_file(toy, assets / "odd" / "vfr.mp4", 1, 0, free, tmp_path / "out")
    assert "damaged" not in whole


def test_predictions_of_any_length(toy: Models, square: Square, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", square(40, 48, 64, 1), 10)
    free = SamplingConfig()

    def predict(folder: str, frames: int | None, plain: bool = True) -> dict[str, Any]:
        file, out = tmp_path / "a.mp4", tmp_path / folder
        return predict_file(toy, file, 2, 0, free, out, num_frames=frames, plain=plain)

    one, long = predict("one", None), predict("long", 37)
    assert (one["windows"], one["frames"], long["windows"], long["frames"]) == (1, 16, 3, 37)
    for short, row in zip(one["predictions"], long["predictions"], strict=True):
        assert len(read_frames(row["output"])) == 37 and len(row["assignment"]) == 12
        assert row["assignment"][:4] == short["assignment"]
        assert row["tokens"] == sum(row["assignment"]) and row["psnr"] > 0
    drawn = predict("bars", 37, plain=False)
    assert len(read_frames(drawn["predictions"][0]["output"])) == 37
    assert predict("longer", 48)["predictions"][0]["psnr"] is None
    with pytest.raises(ValueError, match="5 are given: ask for more"):
        predict("none", 5)
    assert not (tmp_path / "none").exists()


def test_seeds_are_all_different() -> None:
    seeds = {request_seed(seed, a, b) for seed in range(3) for a in range(10) for b in range(10)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
