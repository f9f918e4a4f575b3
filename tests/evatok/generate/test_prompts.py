"""Samples of texts: reproducible, by command, refused where the model takes none, and judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from evatok.cli.app import main
from evatok.generate.prompts import sample_texts, text_files
from evatok.hub import Models, load
from evatok.measure.clip_sets import ClipSet
from evatok.measure.text_alignment import _carried, interval, text_rows
from evatok.workflows.captions import Thresholds
from evatok.workflows.text import save_text
from generator.inference.requests import SamplingConfig
from video.reading import read_frames

GUIDED = SamplingConfig(guidance=2.0)


@pytest.fixture(scope="module")
def models(text_dir: Path) -> Models:
    return load(text_dir)


def test_a_sample_does_not_depend_on_the_others(models: Models) -> None:
    texts = ["a bright clip of Left", "left, dim", "a bright clip of left"]
    many, tokens = sample_texts(models, texts, [1, 2, 1], GUIDED)
    alone, one = sample_texts(models, texts[1:2], [2], GUIDED)
    assert torch.equal(one.ids, torch.cat(tokens.blocks()[1]))
    assert torch.allclose(many[1], alone[0], atol=1e-5)
    assert torch.equal(many[0], many[2])  # case says nothing


def test_files_by_command(
    text_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "--text", "a bright clip of Left", "--text", "A bright, clip of left"]
    words += ["-n", "2", "-o", str(tmp_path / "out"), "--model", str(text_dir), "--json"]
    assert main(words) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["num_samples"] == 4 and done["guidance"] == 2.0
    files = {Path(row["file"]).name for row in done["samples"]}
    assert files == {
        f"a-bright-clip-of-left{more}-0-00{place}.mp4" for more in ("", "-2") for place in (0, 1)
    }
    for row in done["samples"]:
        assert 0 <= row["brightness"] <= 1 and 0 <= row["motion"] <= 1
        assert row["tokens"] == sum(row["assignment"])
        assert len(read_frames(row["file"])) == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", ""], "a text of 0 pieces"),
        (["--text", "far too many words " * 4], "takes 1 to 24"),
        (["--text", "left", "--class", "Left"], "give one of the two"),
        (["--text", "left", "-n", "0"], "at least 1"),
    ],
)
def test_bad_texts(
    text_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    arguments = ["-o", str(tmp_path / "out"), "--model", str(text_dir)]
    assert main(["sample", *words, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_without_text_say_what_to_do(toy: Models, text_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was not trained on texts: give its tokens\.yaml"):
        text_files(toy, ["left"], 1, 0, GUIDED, tmp_path / "out")
    other = tmp_path / "models"
    shutil.copytree(text_dir, other)
    shutil.rmtree(other / "text")
    with pytest.raises(FileNotFoundError, match="evatok text train"):
        text_files(load(other), ["left"], 1, 0, GUIDED, tmp_path / "out")
    save_text(["other captions"] * 3, 300, None, other / "text")
    with pytest.raises(ValueError, match="not the text model that the generator was trained with"):
        text_files(load(other), ["left"], 1, 0, GUIDED, tmp_path / "out")


# --- do samples show what their texts say? ---


def painted(brightness: float, motion: float) -> Tensor:
    """(3, 16, 32, 32) in [−1, 1] of this mean luminance and mean change from frame to frame."""
    signs = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None]
    return (brightness * 2 - 1 + motion * signs).expand(3, 16, 32, 32).clone()


def obedient(models: Models, texts: list[str], seeds: list[int], settings: SamplingConfig):
    """A generator that paints what it is told."""
    clips = [
        painted(
            0.1 if "dark" in text else 0.8 if "bright" in text else 0.45,
            0.002 if "little" in text else 0.08 if "much" in text else 0.015,
        )
        for text in texts
    ]
    return torch.stack(clips), None


def deaf(models: Models, texts: list[str], seeds: list[int], settings: SamplingConfig):
    """A generator that paints the same whatever it is told."""
    return torch.stack([painted(0.8, 0.002)] * len(texts)), None


@pytest.fixture
def real() -> ClipSet:
    """Left: dark or bright, much motion. Right: of no special brightness, little or much motion."""
    clips = [painted(0.1, 0.08), painted(0.8, 0.08), painted(0.45, 0.002), painted(0.45, 0.08)] * 2
    bytes_ = torch.stack(clips).add(1).mul(127.5).round().to(torch.uint8)
    return ClipSet("squares", bytes_, torch.tensor([0, 0, 1, 1] * 2), ["Left", "Right"])


def test_shares_of_samples_that_are_as_told(
    models: Models, real: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(model: object, assigner: object, clips: ClipSet) -> SimpleNamespace:
        return SimpleNamespace(clips=clips)

    monkeypatch.setattr("evatok.measure.text_alignment.reconstruct_set", same)

    def rows(sampler: object) -> dict[str, dict[str, float]]:
        monkeypatch.setattr("evatok.measure.text_alignment.sample_texts", sampler)
        found = text_rows(models, [real], SamplingConfig(), [2.0], 0, pairs=3)
        assert all((row["set"], row["guidance"]) == ("squares", 2.0) for row in found)
        return {row["measure"]: row for row in found}

    good, bad = rows(obedient), rows(deaf)
    names = ["class", "brightness", "motion", "brightness of pairs", "motion of pairs"]
    assert list(good) == list(bad) == names
    # what is said of how many: 4 of 8 dark or bright, all of little or much motion
    assert [good[name]["num_clips"] for name in names] == [8, 4, 8, 3, 3]
    assert [good[name]["share"] for name in names[1:]] == [1, 1, 1, 1]
    assert [bad[name]["share"] for name in names[1:]] == [0.5, 0.25, 0, 0]
    # without its words a clip is neither dark nor bright; its motion is as little as a quarter's
    assert (good["brightness"]["name_alone"], good["motion"]["name_alone"]) == (0, 0.25)
    assert [good[name]["reconstructed"] for name in names[1:3]] == [1, 1]
    assert good["class"]["by_chance"] == 0.5 and good["motion"]["by_chance"] == 1 / 3
    for row in good.values():
        assert row["low"] <= row["share"] <= row["high"]


def test_thresholds_follow_a_tokenizer_that_smooths(real: ClipSet) -> None:
    clips = torch.stack([painted(0.3 + 0.01 * i, 0.02 + 0.01 * i) for i in range(20)])
    half = torch.stack([painted(0.3 + 0.01 * i, (0.02 + 0.01 * i) / 2) for i in range(20)])
    thresholds = Thresholds(brightness=(0.35, 0.43), motion=(0.075, 0.155))
    found = _carried(thresholds, real.like([clips]), real.like([half]))
    assert found.brightness == pytest.approx(thresholds.brightness, abs=0.01)
    assert found.motion == pytest.approx((0.0375, 0.0775), abs=0.005)


def test_rows_of_a_real_model(models: Models, real: ClipSet) -> None:
    first = text_rows(models, [real], SamplingConfig(), [1.0, 2.0], 0, pairs=1)
    assert {row["guidance"] for row in first} == {1.0, 2.0} and len(first) == 10
    assert first == text_rows(models, [real], SamplingConfig(), [1.0, 2.0], 0, pairs=1)


def test_wilsons_interval() -> None:
    """Both ends solve |p − share| = z √(p (1 − p) / n)."""
    for share, count in ((0.0, 5), (0.3, 40), (1.0, 12)):
        for end in interval(share, count):
            width = 1.959963984540054 * (end * (1 - end) / count) ** 0.5
            assert abs(end - share) == pytest.approx(width, abs=1e-9)
