from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.conditions import Condition, FrameCondition, TextCondition
from generator.data.packing import PackedBatch, Packer, pack
from generator.data.token_set import TokenSet
from generator.grammar import Vocabulary
from tests.generator.token_sets import write_tokens

COUNT = 23
CLASS, FRAMES, TEXT = Condition


@pytest.fixture
def tokens(tmp_path: Path, vocabulary: Vocabulary, frames: FrameCondition, tokenizer) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(COUNT, 3, 16, 2, 2, generator=generator)
    levels = torch.tensor([1, 2, 5])

    def assign(clips: Tensor, prefix=()) -> Tensor:
        counts = levels[(clips[:, 0, ::4, 0, 0] * 1000).long() % 3]
        counts[:, : len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
        return counts

    def describe(first: int, clips: Tensor, labels: Tensor, videos: Tensor) -> list[list[int]]:
        assert videos.tolist() == list(range(first, first + len(clips)))
        return [[i % 7] * (i % 5) + [i % 3] for i in range(first, first + len(clips))]

    videos = torch.arange(COUNT)
    vocabulary = Vocabulary.model_validate(vocabulary.model_dump() | {"num_text": 7})
    return write_tokens(
        tmp_path / "t",
        [(clips, videos % 3, videos)],
        tokenizer,
        assign,
        vocabulary,
        frames,
        text=TextCondition(max_pieces=5, digest="toy"),
        describe=describe,
    )


def sequences_of(batch: PackedBatch) -> list[list[int]]:
    """Unpack: inputs and, behind them, the last target."""
    out = []
    for first, last in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        final = batch.targets[batch.target_positions == last - 1]
        out.append([*batch.ids[first:last].tolist(), int(final)])
    return out


def test_pack_then_unpack_is_identity(tokens: TokenSet) -> None:
    picked = [(3, CLASS), (0, FRAMES), (7, TEXT), (7, CLASS), (8, TEXT), (7, FRAMES)]
    sequences = [tokens.sequence(*item) for item in picked]
    kinds = [condition for _, condition in picked]
    batch = pack(sequences, [tokens.condition_length(*item) for item in picked], kinds)
    assert sequences_of(batch) == [sequence.tolist() for sequence in sequences]
    assert batch.conditions.tolist() == kinds


def test_loss_is_on_every_token_but_the_condition(
    tokens: TokenSet, vocabulary: Vocabulary, frames: FrameCondition
) -> None:
    """Every length token and the last code of the longest clip count; no condition token does."""
    longest = int(tokens.lengths().argmax())
    for condition in Condition:
        order = [longest, 1, 2]
        sequences = [tokens.sequence(i, condition) for i in order]
        starts = [tokens.condition_length(i, condition) for i in order]
        batch = pack(sequences, starts, [condition] * 3)
        parts = [sequence[start:] for sequence, start in zip(sequences, starts, strict=True)]
        expected = np.concatenate(parts)
        assert batch.targets.tolist() == expected.tolist()
        # each target stands right behind the place that predicts it
        following = [t for s in sequences for t in s[1:]]
        assert [following[place] for place in batch.target_positions] == batch.targets.tolist()
        is_length = vocabulary.kinds[batch.targets] == 1
        generated = 4 - (frames.kept_blocks if condition == FRAMES else 0)
        assert int(is_length.sum()) == 3 * generated
        last = batch.cu_seqlens[1] - 1
        assert last in batch.target_positions
        assert batch.targets[batch.target_positions == last] == int(sequences[0][-1])
        assert not (vocabulary.kinds[batch.targets] == 2).any()


@pytest.mark.parametrize("world", [1, 3])
def test_each_clip_comes_once_an_epoch(tokens: TokenSet, world: int) -> None:
    packer = Packer(tokens, budget=120, seed=5, frame_share=0.4, text_share=0.3)
    seen: list[int] = []
    content = [
        {tuple(tokens.sequence(i, condition)[1:].tolist()): i for i in range(COUNT)}
        for condition in Condition
    ]
    step = 0
    while len(seen) < 4 * COUNT:
        ranks = [packer.batch(step, rank, world) for rank in range(world)]
        items = packer.items(step)
        assert sum(len(batch.ids) for batch in ranks) <= 120
        found = [
            content[condition][tuple(sequence[1:])]
            for batch in ranks
            for sequence, condition in zip(
                sequences_of(batch), batch.conditions.tolist(), strict=True
            )
        ]
        assert Counter(found) == Counter(clip for clip, _, _ in items)
        seen += [clip for clip, _, _ in items]
        step += 1
    epochs = [seen[i * COUNT : (i + 1) * COUNT] for i in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1]


def test_batches_are_full(tokens: TokenSet) -> None:
    packer = Packer(tokens, budget=120, seed=5)
    longest = int(tokens.lengths().max()) - 1
    for step in range(30):
        assert 120 - longest < len(packer.batch(step).ids) <= 120


def test_a_batch_is_a_pure_function_of_the_step(tokens: TokenSet) -> None:
    one = Packer(tokens, 90, seed=1, frame_share=0.3, text_share=0.2)
    forward = [one.batch(step) for step in range(12)]
    other = Packer(tokens, 90, seed=1, frame_share=0.3, text_share=0.2)
    for step in reversed(range(12)):
        assert torch.equal(other.batch(step).ids, forward[step].ids)
        assert torch.equal(other.batch(step).targets, forward[step].targets)
    assert not torch.equal(Packer(tokens, 90, seed=2).batch(0).ids, forward[0].ids)


def test_shares_of_conditions(tokens: TokenSet, vocabulary: Vocabulary) -> None:
    packer = Packer(tokens, 200, seed=0, frame_share=0.3, label_dropout=0.1, text_share=0.4)
    firsts, batches = [], [packer.batch(step) for step in range(200)]
    for batch in batches:
        firsts += batch.ids[batch.cu_seqlens[:-1].long()].tolist()
    counts, total = Counter(firsts), len(firsts)
    assert counts[vocabulary.frames] / total == pytest.approx(0.3, abs=0.03)
    assert counts[vocabulary.text] / total == pytest.approx(0.36, abs=0.03)
    assert counts[vocabulary.null] / total == pytest.approx(0.07, abs=0.02)
    kinds = torch.cat([batch.conditions for batch in batches])
    expected = [{vocabulary.frames: FRAMES, vocabulary.text: TEXT}.get(x, CLASS) for x in firsts]
    assert kinds.tolist() == expected


def test_without_text_the_draws_are_those_of_before(tokens: TokenSet) -> None:
    """Order, frames and dropped classes, drawn as they were before there was text."""
    packer = Packer(tokens, 90, seed=4, frame_share=0.3, label_dropout=0.2)
    items = [item for step in range(60) for item in packer.items(step)]
    for epoch in range(3):
        random = np.random.default_rng([4, epoch])
        order = random.permutation(COUNT)
        is_frames = random.random(COUNT) < 0.3
        is_null = ~is_frames & (random.random(COUNT) < 0.2)
        expected = list(zip(order.tolist(), is_frames.tolist(), is_null.tolist(), strict=True))
        assert items[epoch * COUNT : (epoch + 1) * COUNT] == expected
    with_text = Packer(tokens, 90, seed=4, frame_share=0.3, label_dropout=0.2, text_share=0.5)
    others = [item for step in range(60) for item in with_text.items(step)]
    for (clip, kind, is_null), (other, new, other_null) in zip(items, others, strict=False):
        assert (clip, is_null) == (other, other_null)
        assert new == kind or (new == TEXT and kind == CLASS and not is_null)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_split_loses_nothing(tokens: TokenSet, parts: int) -> None:
    batch = Packer(tokens, 160, seed=3, frame_share=0.3, text_share=0.3).batch(2)
    pieces = batch.split(parts)
    assert len(pieces) == parts
    assert [s for piece in pieces for s in sequences_of(piece)] == sequences_of(batch)
    assert torch.equal(torch.cat([piece.conditions for piece in pieces]), batch.conditions)
    assert all(len(piece.cu_seqlens) > 1 for piece in pieces)


def test_ranks_get_about_equally_many_tokens(tokens: TokenSet) -> None:
    packer = Packer(tokens, 200, seed=3)
    sizes = [len(packer.batch(0, rank, 3).ids) for rank in range(3)]
    assert max(sizes) - min(sizes) <= int(tokens.lengths().max())


def test_errors_name_the_rule(tokens: TokenSet) -> None:
    with pytest.raises(ValueError, match="a budget of 5 tokens"):
        Packer(tokens, 5, seed=0)


def test_fewer_sequences_than_ranks_or_parts(tokens: TokenSet) -> None:
    """A step is so many tokens, not so many clips: some ranks then learn from nothing."""
    packer = Packer(tokens, 60, seed=0)
    whole = packer.batch(0)
    shares = [packer.batch(0, rank, 50) for rank in range(50)]
    parts = whole.split(50)
    for pieces in (shares, parts):
        assert len(pieces) == 50 and all(len(piece.ids) for piece in pieces)
        assert sum(len(piece.targets) for piece in pieces) == len(whole.targets)
        idle = [piece for piece in pieces if not len(piece.targets)]
        assert len(idle) == 50 - len(whole.conditions)
        assert all(len(piece.cu_seqlens) == 2 and not len(piece.target_positions) for piece in idle)
    assert [s for piece in parts if len(piece.targets) for s in sequences_of(piece)] == (
        sequences_of(whole)
    )
