from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.conditions import Condition, FrameCondition, uniform
from generator.data.token_set import TokenSet
from generator.grammar import Vocabulary
from tests.generator.token_sets import write_tokens
from tokenizer.tokens import Tokens

SIZES = [3, 2, 3]


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    first = 0
    for size in SIZES:
        videos = torch.arange(first, first + size) // 2  # two windows a video
        yield torch.rand(size, 3, 16, 8, 8, generator=generator) * 2 - 1, videos % 3, videos
        first += size


def assign(clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
    """Lengths that depend on the clip."""
    levels = torch.tensor([1, 2, 5])
    ranks = (clips[:, 0, ::4, 0, 0] * 1000).long().abs() % 3  # (B, T)
    counts = levels[ranks]
    counts[:, : len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
    return counts


def test_what_is_written_is_what_the_tokenizer_said(
    tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer
) -> None:
    note = {"split": "train", "windows": 2}
    tokens = write_tokens(
        tmp_path / "train", batches(), tokenizer, assign, vocabulary, frames, note
    )
    assert len(tokens) == sum(SIZES)
    assert tokens.videos.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert tokens.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert (tokens.vocabulary, tokens.frames, tokens.note) == (vocabulary, frames, note)
    assert not list(tmp_path.glob("*.partial"))
    index = 0
    for clips, labels, _ in batches():
        whole = tokenizer.encode(clips, assign(clips)).blocks()
        target = tokenizer.encode(clips, assign(clips, frames.prefix)).blocks()
        condition = tokenizer.encode(
            frames.pad(clips), torch.tensor([frames.prefix] * len(clips))
        ).blocks()
        for row, label in enumerate(labels.tolist()):
            sequence = torch.from_numpy(tokens.sequence(index).astype(np.int64))
            assert sequence[0] == vocabulary.class_token(label)
            back = vocabulary.decode_blocks(sequence[1:])
            assert [b.tolist() for b in back] == [b.tolist() for b in whole[row]]

            sequence = torch.from_numpy(tokens.sequence(index, Condition.FRAMES).astype(np.int64))
            assert sequence[0] == vocabulary.frames
            end = tokens.condition_length(index, Condition.FRAMES)
            assert sequence[end - 1] == vocabulary.separator
            back = vocabulary.decode_blocks(sequence[1 : end - 1])
            assert [b.tolist() for b in back] == [b.tolist() for b in condition[row]]
            back = vocabulary.decode_blocks(sequence[end:])
            assert [b.tolist() for b in back] == [b.tolist() for b in target[row][1:]]
            # the block that was given whole is the same in condition and target: causality
            assert torch.equal(condition[row][0], target[row][0])
            index += 1


def test_frame_prediction_alone_costs_two_passes(
    tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer
) -> None:
    """Without class sequences the frames' bytes are the same, and a pass of the tokenizer less."""
    encode, calls = tokenizer.encode, []

    def count(clips: Tensor, assignment: Tensor) -> Tokens:
        calls.append(len(clips))
        return encode(clips, assignment)

    tokenizer.encode = count
    both = write_tokens(tmp_path / "both", batches(), tokenizer, assign, vocabulary, frames)
    assert len(calls) == 3 * len(SIZES)
    calls.clear()
    alone = write_tokens(
        tmp_path / "alone", batches(), tokenizer, assign, vocabulary, frames, classes=False
    )
    assert len(calls) == 2 * len(SIZES)
    files = {path.name for path in (tmp_path / "both").iterdir()}
    assert {path.name for path in (tmp_path / "alone").iterdir()} == files - {
        "class.bin",
        "class.npy",
    }
    for name in ("frames.bin", "frames.npy", "labels.npy", "videos.npy"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    assert both.classes and not alone.classes
    kept = [len(alone.sequence(i, Condition.FRAMES)) - frames.num_tokens - 3 for i in range(8)]
    assert alone.mean_tokens() == pytest.approx(sum(kept) / 8)
    with pytest.raises(ValueError, match="without class conditions"):
        alone.sequence(0)
    with pytest.raises(ValueError, match="other settings"):
        write_tokens(tmp_path / "both", batches(), tokenizer, assign, vocabulary, frames,
                     classes=False)  # fmt: skip
    with pytest.raises(ValueError, match="need frame conditions"):
        write_tokens(tmp_path / "x", batches(), tokenizer, assign, vocabulary, classes=False)


def test_finished_shards_are_opened_and_not_written_again(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    first = write_tokens(tmp_path / "t", batches(), tokenizer, uniform(2, 4), vocabulary)
    again = write_tokens(tmp_path / "t", iter(()), tokenizer, uniform(2, 4), vocabulary)
    assert len(again) == len(first)
    assert again.frames is None
    with pytest.raises(ValueError, match="without frame conditions"):
        again.sequence(0, Condition.FRAMES)
    with pytest.raises(ValueError, match="other settings"):
        write_tokens(
            tmp_path / "t", batches(), tokenizer, uniform(2, 4), vocabulary, note={"split": "test"}
        )


def test_an_interrupted_write_leaves_no_shards(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield next(batches())
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_tokens(tmp_path / "t", broken(), tokenizer, uniform(2, 4), vocabulary)
    with pytest.raises(FileNotFoundError, match="holds no tokens"):
        TokenSet(tmp_path / "t")
    tokens = write_tokens(tmp_path / "t", batches(), tokenizer, uniform(2, 4), vocabulary)
    assert len(tokens) == sum(SIZES)


def test_a_foreign_folder_is_left_alone(tmp_path: Path, vocabulary: Vocabulary, tokenizer) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_tokens(tmp_path, batches(), tokenizer, uniform(2, 4), vocabulary)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_clip_without_class_gets_the_null_token(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    clips = torch.rand(2, 3, 16, 8, 8)
    labels = torch.tensor([-1, 2])
    tokens = write_tokens(
        tmp_path / "t", [(clips, labels, labels)], tokenizer, uniform(2, 4), vocabulary
    )
    assert int(tokens.sequence(0)[0]) == vocabulary.null
    assert int(tokens.sequence(1)[0]) == vocabulary.class_token(2)


def test_damage_is_noticed(tmp_path: Path, vocabulary: Vocabulary, tokenizer) -> None:
    write_tokens(tmp_path / "t", batches(), tokenizer, uniform(2, 4), vocabulary)
    path = tmp_path / "t" / "class.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="does not hold"):
        TokenSet(tmp_path / "t")
    with pytest.raises(ValueError, match="no clip"):
        write_tokens(tmp_path / "empty", iter(()), tokenizer, uniform(2, 4), vocabulary)


def array(path: Path) -> np.ndarray:
    return np.load(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "meta empty": lambda d: (d / "tokens.json").write_text(""),
    "meta a list": lambda d: (d / "tokens.json").write_text("[]"),
    "meta binary": lambda d: (d / "tokens.json").write_bytes(b"\xff\xfe\x00"),
    "meta without note": lambda d: (d / "tokens.json").write_text('{"format": 1}'),
    "format": lambda d: (d / "tokens.json").write_text('{"format": 2}'),
    "offsets empty": lambda d: (d / "class.npy").write_bytes(b""),
    "offsets cut": lambda d: (d / "class.npy").write_bytes((d / "class.npy").read_bytes()[:-8]),
    "offsets fall": lambda d: np.save(d / "class.npy", array(d / "class.npy")[::-1]),
    "offsets none": lambda d: np.save(d / "class.npy", np.zeros(0, np.int64)),
    "offsets floats": lambda d: np.save(d / "class.npy", array(d / "class.npy") + 0.5),
    "offsets objects": lambda d: np.save(d / "class.npy", np.array([{}]), allow_pickle=True),
    "offsets gone": lambda d: (d / "class.npy").unlink(),
    "fewer clips": lambda d: np.save(d / "labels.npy", array(d / "labels.npy")[:-1]),
    "labels beyond": lambda d: np.save(d / "labels.npy", array(d / "labels.npy") + 99),
    "videos gone": lambda d: (d / "videos.npy").unlink(),
    "tokens gone": lambda d: (d / "class.bin").unlink(),
    "tokens beyond": lambda d: (d / "class.bin").write_bytes(
        b"\xff" * (d / "class.bin").stat().st_size
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_damaged_file_is_named_with_what_to_do(
    name: str, tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    write_tokens(tmp_path / "t", batches(), tokenizer, uniform(2, 4), vocabulary)
    DAMAGE[name](tmp_path / "t")
    with pytest.raises(ValueError) as caught:
        TokenSet(tmp_path / "t")
    message = str(caught.value)
    assert str(tmp_path / "t") in message and "\n" not in message
    assert "delete its folder and write the tokens anew" in message
