from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evatok.core.config import load_config
from generator.conditions import Condition, FrameCondition
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference.engine import sample
from generator.inference.requests import SamplingConfig, class_requests, frame_requests
from generator.train import GeneratorConfig, GeneratorStage
from tests.generator.token_sets import write_tokens
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.tokens import Tokens
from training.loop import train

CLIPS = 3  # one of each class
SIZE = 16


def assign(clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
    counts = torch.tensor([[1, 2, 5, 1], [2, 2, 1, 5], [5, 1, 1, 2]])[: len(clips)].clone()
    counts[:, : len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
    return counts


@pytest.fixture
def folder(tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer) -> Path:
    """Train and test tokens of the same three clips."""
    clips = torch.rand(CLIPS, 3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(CLIPS)
    for split in ("train", "test"):
        batches = [(clips, rows, rows)]
        write_tokens(tmp_path / split, batches, tokenizer, assign, vocabulary, frames)
    return tmp_path


def settings(folder: Path, **changes: Any) -> GeneratorConfig:
    data = {
        "tokens": folder,
        "model": {"width": 32, "layers": 2, "heads": 2, "hidden": 64},
        "frame_share": 0.5,
        "label_dropout": 0.0,
        "train": {
            "steps": 120,
            "batch_size": 6,
            "validate_every": 0,
            "save_every": 0,
            "log_every": 60,
            "optimizer": {"lr": 1e-2},
            "schedule": {"name": "wsd", "warmup_steps": 5},
        },
    }
    train = {**data["train"], **changes.pop("train", {})}
    return GeneratorConfig.model_validate({**data, **changes, "train": train})


def test_learns_a_few_clips_by_heart(folder: Path, tmp_path: Path) -> None:
    config = settings(folder)
    stage = GeneratorStage(config)
    vocabulary, frames = stage.tokens.vocabulary, stage.tokens.frames
    assert frames is not None
    before = stage.validate(stage.model, 0).scalars
    assert before["cross_entropy_class"] == pytest.approx(torch.tensor(vocabulary.size).log())
    model = train(stage, config.train, tmp_path / "run", config)
    assert isinstance(model, GPT)
    after = stage.validate(model, 1).scalars
    # classes and given frames tell the three clips apart: nothing is left to chance
    assert after["cross_entropy_class"] < 0.05
    assert after["cross_entropy_frames"] < 0.05

    greedy = SamplingConfig(temperature=0)
    clips = sample(model, class_requests(vocabulary, range(CLIPS), range(CLIPS), greedy)).blocks()
    for label, blocks in enumerate(clips):
        sequence = vocabulary.encode_blocks(blocks).tolist()
        assert sequence == stage.tokens.sequence(label)[1:].tolist()
    conditions = []
    for row in range(CLIPS):
        ids = torch.from_numpy(
            stage.tokens.sequence(row, Condition.FRAMES)[1 : frames.num_tokens - 1].copy()
        )
        conditions.append(vocabulary.decode_blocks(ids.long()))
    requests = frame_requests(
        vocabulary, frames, Tokens.from_blocks(conditions), range(CLIPS), greedy
    )
    for row, blocks in enumerate(sample(model, requests).blocks()):
        assert torch.equal(blocks[0], conditions[row][0])
        sequence = vocabulary.encode_blocks(blocks[1:]).tolist()
        assert (
            sequence == stage.tokens.sequence(row, Condition.FRAMES)[frames.num_tokens :].tolist()
        )


def test_training_goes_on_from_a_trained_one(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, train={"steps": 20})
    model = train(GeneratorStage(config), config.train, tmp_path / "run", config)
    assert isinstance(model, GPT)
    model.save_pretrained(tmp_path / "trained")
    stage = GeneratorStage(settings(folder, start_from=tmp_path / "trained"))
    trained = stage.validate(model, 0).scalars["cross_entropy_class"]
    assert stage.validate(stage.model, 0).scalars["cross_entropy_class"] == trained < 2


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_by_weight_make_the_whole_loss(folder: Path, parts: int) -> None:
    stage = GeneratorStage(settings(folder))
    torch.nn.init.normal_(stage.model.get_parameter("head.weight"))
    generator = torch.Generator()
    batch = stage.batch(3, 0, 1)
    whole, logs = stage.loss(stage.model, batch, generator)
    assert "loss" not in logs
    pieces = stage.split(batch, parts)
    weights = [stage.weight(piece) for piece in pieces]
    losses = [stage.loss(stage.model, piece, generator)[0] for piece in pieces]
    mean = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, whole)


def test_more_parts_than_sequences_make_the_whole_loss(folder: Path) -> None:
    stage = GeneratorStage(settings(folder))
    torch.nn.init.normal_(stage.model.get_parameter("head.weight"))
    batch = stage.batch(3, 0, 1)
    whole, _ = stage.loss(stage.model, batch, torch.Generator())
    whole.backward()
    expected = {name: p.grad for name, p in stage.model.named_parameters()}
    stage.model.zero_grad()
    pieces = stage.split(batch, len(batch.conditions) + 2)
    total = sum(map(stage.weight, pieces))
    for piece in pieces:
        loss, _ = stage.loss(stage.model, piece, torch.Generator())
        (loss * (stage.weight(piece) / total)).backward()
    for name, parameter in stage.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_dropout_of_the_network_follows_the_seed(folder: Path, tmp_path: Path) -> None:
    config = settings(
        folder,
        model={"width": 32, "layers": 1, "heads": 2, "hidden": 64, "dropout": 0.3},
        train={"steps": 4, "grad_accumulation": 2},
    )
    one, two = (
        train(GeneratorStage(config), config.train, tmp_path / name, config) for name in "ab"
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_default_budget_is_the_batch_size_in_clips(folder: Path) -> None:
    stage = GeneratorStage(settings(folder, train={"batch_size": 20}))
    counts = [len(stage.packer.items(step)) for step in range(30)]
    assert 18 <= sum(counts) / len(counts) <= 21
    assert GeneratorStage(settings(folder, token_budget=77)).packer.budget == 77


def test_pictures(folder: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    former = QFormerConfig(width=24, layers=1, heads=2)
    VideoTokenizer(
        TokenizerConfig(
            levels=vocabulary.levels,
            size=SIZE,
            encoder=former,
            decoder=former,
            codebook_size=vocabulary.codebook_size,
        )
    ).save_pretrained(tmp_path / "tokenizer")
    stage = GeneratorStage(settings(folder, tokenizer=tmp_path / "tokenizer", pictures=4))
    found = stage.validate(stage.model.eval(), 0)
    assert found.images["samples"].shape == (4 * SIZE, 8 * SIZE, 3)
    # three held-out clips, each over its prediction
    assert found.images["predictions"].shape == (2 * CLIPS * SIZE, 8 * SIZE, 3)
    assert all(image.dtype.name == "uint8" for image in found.images.values())
    assert all(torch.isfinite(torch.tensor(list(found.scalars.values()))))


def test_shards_must_fit_each_other(
    tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer
) -> None:
    batches = [(torch.rand(2, 3, 16, 2, 2), torch.arange(2), torch.arange(2))]
    write_tokens(tmp_path / "train", batches, tokenizer, assign, vocabulary, frames)
    with pytest.raises(FileNotFoundError, match="test"):
        GeneratorStage(settings(tmp_path))
    fewer = vocabulary.model_copy(update={"class_names": ("cat", "dog")})
    write_tokens(tmp_path / "test", batches, tokenizer, assign, fewer, frames)
    with pytest.raises(ValueError, match="same vocabulary"):
        GeneratorStage(settings(tmp_path))


def test_nano_settings(root: Path) -> None:
    config = load_config(GeneratorConfig, root / "configs" / "nano" / "generator.yaml")
    vocabulary = Vocabulary(
        codebook_size=1024,
        levels=(4, 8, 16, 32, 64),
        num_blocks=4,
        class_names=tuple(str(i) for i in range(24)),
    )
    with torch.device("meta"):
        gpt = GPT(config.model, vocabulary, FrameCondition(prefix=(64, 16)))
    assert 3.5e6 < sum(p.numel() for p in gpt.parameters()) < 4.6e6


def test_other_tokens_than_expected_are_refused(
    folder: Path, vocabulary: Vocabulary, frames: FrameCondition
) -> None:
    expect = {
        "codebook_size": vocabulary.codebook_size,
        "levels": vocabulary.levels,
        "num_blocks": vocabulary.num_blocks,
        "num_classes": len(vocabulary.class_names),
        "mean_length": 10,
        "frames": frames,
    }
    stage = GeneratorStage(settings(folder, expect=expect))
    assert isinstance(stage.model, GPT)
    for name, value in (("num_classes", 99), ("codebook_size", 7), ("frames", None)):
        with pytest.raises(ValueError, match=rf"expect\.{name} is {value}, but the tokens have"):
            GeneratorStage(settings(folder, expect=expect | {name: value}))


def test_frames_alone_need_no_class_sequences(
    folder: Path, tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer
) -> None:
    """The same batches as with them; a share of classes is refused."""
    clips = torch.rand(CLIPS, 3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    batch = (clips, torch.arange(CLIPS), torch.arange(CLIPS))
    for split in ("train", "test"):
        write_tokens(tmp_path / "alone" / split, [batch], tokenizer, assign, vocabulary, frames,
                     classes=False)  # fmt: skip
    both = GeneratorStage(settings(folder, frame_share=1.0))
    alone = GeneratorStage(settings(tmp_path / "alone", frame_share=1.0))
    assert alone.packer.budget == both.packer.budget
    assert torch.equal(alone.batch(3, 0, 1).ids, both.batch(3, 0, 1).ids)
    found = alone.validate(alone.model, 0).scalars
    assert list(found) == [k for k in both.validate(both.model, 0).scalars if "frames" in k]
    with pytest.raises(ValueError, match="without class conditions"):
        GeneratorStage(settings(tmp_path / "alone", frame_share=0.5))
