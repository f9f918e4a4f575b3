"""A generator that goes on from a trained one: every token keeps its meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evatok.core.errors import EvatokError
from generator.conditions import FrameCondition, TextCondition
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.start import start_from

Make = Callable[..., GPT]
TEXT = TextCondition(digest="a" * 16, max_pieces=4)


def with_text(vocabulary: Vocabulary, pieces: int = 6) -> Vocabulary:
    return vocabulary.model_copy(update={"num_text": pieces})


def logits(model: GPT, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32))


def fresh(model: GPT) -> GPT:
    """Another one of its kind."""
    return GPT(model.size, model.vocabulary, model.frames, model.text).eval()


@torch.no_grad()
def test_the_same_vocabulary_says_the_same(gpt: GPT) -> None:
    made = fresh(gpt)
    start_from(made, gpt)
    ids = [gpt.vocabulary.class_token(1), gpt.vocabulary.first_length, 3]
    assert torch.equal(logits(made, ids), logits(gpt, ids))


@torch.no_grad()
def test_classes_go_by_their_names(make_gpt: Make, vocabulary: Vocabulary) -> None:
    """In another order; one that the source does not know is any class."""
    source = make_gpt(with_text(vocabulary), text=TEXT)
    ours = vocabulary.model_copy(update={"class_names": ("fox", "bee"), "num_blocks": 2})
    made = GPT(source.size.model_copy(update={"dropout": 0.1}), ours).eval()
    start_from(made, source)
    rest, length = [ours.first_length, 3], ours.separator + 1
    for condition, theirs in (
        (ours.class_token(0), vocabulary.null),
        (ours.class_token(1), vocabulary.class_token(2)),
        (ours.null, vocabulary.null),
    ):
        said = logits(made, [condition, *rest])[:, :length]
        assert torch.equal(said, logits(source, [theirs, *rest])[:, :length])


@torch.no_grad()
def test_text_of_the_same_pieces_is_kept(make_gpt: Make, vocabulary: Vocabulary) -> None:
    source = make_gpt(with_text(vocabulary), text=TEXT)
    ours = with_text(vocabulary.model_copy(update={"class_names": ("fox",)}))
    made = GPT(source.size, ours, text=TEXT).eval()
    start_from(made, source)
    theirs = source.vocabulary
    ids, twin = ([v.text, v.text + 3, v.separator] for v in (ours, theirs))
    assert torch.equal(
        logits(made, ids)[:, : ours.first_length], logits(source, twin)[:, : ours.first_length]
    )
    other = GPT(source.size, with_text(ours, 5), text=TEXT.model_copy(update={"digest": "b" * 16}))
    before = other.embedding.weight.clone()
    start_from(other, source)
    assert torch.equal(other.embedding.weight[ours.text], source.embedding.weight[theirs.text])
    assert torch.equal(other.embedding.weight[ours.text + 1 :], before[ours.text + 1 :])


def test_another_size_is_refused(
    gpt: GPT, make_gpt: Make, vocabulary: Vocabulary, frames: FrameCondition
) -> None:
    wider = make_gpt(vocabulary, frames, hidden=64)
    with pytest.raises(EvatokError, match=r"that generator has model\.hidden 48, not 64$"):
        start_from(wider, gpt)
    finer = make_gpt(vocabulary.model_copy(update={"codebook_size": 24, "levels": (1, 2)}))
    with pytest.raises(EvatokError, match=r"codes 12, not 24; levels \[1, 2, 5\], not \[1, 2\]"):
        start_from(finer, gpt)


def test_a_damaged_source_is_named(tmp_path: Path, gpt: GPT) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        start_from(fresh(gpt), GPT.from_pretrained(tmp_path))
