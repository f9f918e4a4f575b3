"""Token shards in parts: the same bytes for any number of processes and any kills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evatok.core.processes.distributed import RankInfo
from generator.conditions import FrameCondition
from generator.data.parts import write_share
from generator.data.shards import Batch, Writer
from generator.data.token_set import TokenSet
from generator.grammar import Vocabulary
from tests.generator.token_sets import write_tokens

SIZE, CLIPS = 3, 14
BATCHES = -(-CLIPS // SIZE)


def draw(number: int) -> Batch:
    rows = min(SIZE, CLIPS - number * SIZE)
    generator = torch.Generator().manual_seed(number)
    videos = torch.arange(number * SIZE, number * SIZE + rows)
    return torch.rand(rows, 3, 16, 8, 8, generator=generator) * 2 - 1, videos % 3, videos


def assign(clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
    levels = torch.tensor([1, 2, 5])
    counts = levels[(clips[:, 0, ::4, 0, 0] * 1000).long().abs() % 3]
    counts[:, : len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
    return counts


def no_batch(number: int) -> Batch:
    raise AssertionError(f"batch {number} was drawn again")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer) -> Path:
    """What one process writes without parts."""
    batches = map(draw, range(BATCHES))
    write_tokens(tmp_path / "whole", batches, tokenizer, assign, vocabulary, frames, {"a": 1})
    return tmp_path / "whole"


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path,
    whole: Path,
    vocabulary: Vocabulary,
    frames: FrameCondition,
    tokenizer,
    world: int,
) -> None:
    writer = Writer(tmp_path / "t", tokenizer, assign, vocabulary, frames, {"a": 1})
    done = [
        write_share(writer, draw, BATCHES, SIZE, RankInfo(rank, world))
        for rank in reversed(range(world))
    ]
    assert done[:-1] == [None] * (world - 1) or world > BATCHES
    assert isinstance(done[-1], TokenSet) and len(done[-1]) == CLIPS
    assert contents(tmp_path / "t") == contents(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"t", "whole"}
    again = write_share(writer, no_batch, BATCHES, SIZE, RankInfo(0, 2))
    assert again is not None


def test_a_killed_process_goes_on_where_it_was(
    tmp_path: Path, whole: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer
) -> None:
    writer = Writer(tmp_path / "t", tokenizer, assign, vocabulary, frames, {"a": 1})
    drawn: list[int] = []

    def counted(number: int) -> Batch:
        if len(drawn) == 2 and 2 not in drawn:
            drawn.append(number)
            raise KeyboardInterrupt
        drawn.append(number)
        return draw(number)

    with pytest.raises(KeyboardInterrupt):
        write_share(writer, counted, BATCHES, SIZE)
    assert not (tmp_path / "t").exists()
    tokens = write_share(writer, counted, BATCHES, SIZE, RankInfo(0, 1))
    assert drawn == [0, 1, 2, 2, 3, 4]
    assert tokens is not None and contents(tmp_path / "t") == contents(whole)


def test_parts_of_other_settings_are_refused(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    writer = Writer(tmp_path / "t", tokenizer, assign, vocabulary)
    assert write_share(writer, draw, BATCHES, SIZE, RankInfo(0, 2)) is None
    other = Writer(tmp_path / "t", tokenizer, assign, vocabulary, note={"a": 2})
    for wrong, size in ((other, SIZE), (writer, SIZE + 1)):
        with pytest.raises(ValueError, match="parts of other settings"):
            write_share(wrong, draw, BATCHES, size, RankInfo(1, 2))
    with pytest.raises(ValueError, match="no clip"):
        write_share(Writer(tmp_path / "e", tokenizer, assign, vocabulary), draw, 0, SIZE)


def test_a_damaged_part_is_removed_and_made_again(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer, whole: Path, frames: FrameCondition
) -> None:
    writer = Writer(tmp_path / "t", tokenizer, assign, vocabulary, frames, {"a": 1})
    assert write_share(writer, draw, BATCHES, SIZE, RankInfo(0, 2)) is None
    part = sorted((tmp_path / "t.parts").glob("*.npz"))[0]
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"000000\.npz .*run the same command again"):
        write_share(writer, draw, BATCHES, SIZE, RankInfo(1, 2))
    assert write_share(writer, draw, BATCHES, SIZE) is not None
    assert contents(tmp_path / "t") == contents(whole)


def test_a_damaged_plan_of_parts_is_named(
    tmp_path: Path, vocabulary: Vocabulary, tokenizer
) -> None:
    writer = Writer(tmp_path / "t", tokenizer, assign, vocabulary)
    assert write_share(writer, draw, BATCHES, SIZE, RankInfo(0, 2)) is None
    (tmp_path / "t.parts" / "tokens.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokens\.json is no JSON .*: delete .*t\.parts"):
        write_share(writer, draw, BATCHES, SIZE, RankInfo(1, 2))
