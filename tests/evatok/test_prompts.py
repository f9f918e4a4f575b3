"""Samples of texts: reproducible, by command, and refused where the model takes none."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from evatok.captions import Thresholds
from evatok.cli import main
from evatok.models import Models, load, save_model
from evatok.prompts import sample_texts, text_files
from evatok.text import Captioner, save_text
from generator.conditions import TextCondition
from generator.engine import SamplingConfig
from generator.gpt import GPT
from generator.grammar import Vocabulary
from video.io import read_frames

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="sentencepiece is not installed"
)
GUIDED = SamplingConfig(guidance=2.0)
CAPTIONS = ["a bright clip of left", "a dark clip of right with much motion", "left, dim"] * 3


@pytest.fixture(scope="module")
def text_dir(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy family with a generator that takes texts, weights at random."""
    root = tmp_path_factory.mktemp("toy-text") / "models"
    shutil.copytree(toy_dir, root)
    save_text(CAPTIONS, 300, Thresholds(brightness=(0.3, 0.6), motion=(0.01, 0.02)), root / "text")
    pieces = Captioner.load(root / "text").pieces
    old = load(toy_dir).generator
    data = old.vocabulary.model_dump() | {"num_text": len(pieces)}
    text = TextCondition(max_pieces=8, digest=pieces.digest)
    torch.manual_seed(0)
    gpt = GPT(old.size, Vocabulary.model_validate(data), old.frames, text)
    torch.nn.init.normal_(gpt.head.weight, std=0.5)
    save_model(gpt, root / "generator", half=True)
    return root


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
        (["--text", "far too many words for this model here"], "takes 1 to 8"),
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
