"""Text conditions from captions to samples: pieces, shards, training, guidance, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.conditions import (
    Condition,
    FrameCondition,
    TextCondition,
    class_prompt,
    frames_prompt,
    longest_sequence,
    text_prompt,
    uniform,
)
from generator.data.token_set import META, TokenSet
from generator.export.vocabulary import GrammarLogitsProcessor, token_table
from generator.gpt import GPT
from generator.grammar import NEVER, Vocabulary
from generator.inference.engine import sample
from generator.inference.requests import (
    Request,
    SamplingConfig,
    class_requests,
    frame_requests,
    text_requests,
)
from generator.text import TextTokenizer, train_text_tokenizer
from generator.train import ExpectedTokens, GeneratorConfig, GeneratorStage
from tests.generator.token_sets import write_tokens
from tokenizer.tokens import Tokens
from training.loop import train

PIECES = 9
TEXT = TextCondition(max_pieces=4, digest="toy")
CAPTIONS = ["a bright clip of a cat", "a dark clip of a dog", "a dog with much motion"] * 4


@pytest.fixture
def with_text(vocabulary: Vocabulary) -> Vocabulary:
    return Vocabulary.model_validate(vocabulary.model_dump() | {"num_text": PIECES})


@pytest.fixture
def text_gpt(make_gpt: Callable[..., GPT], with_text: Vocabulary, frames: FrameCondition) -> GPT:
    return make_gpt(with_text, frames, text=TEXT)


# --- captions as pieces ---


def test_every_text_can_be_written(tmp_path: Path) -> None:
    pieces = train_text_tokenizer(CAPTIONS, 400)
    assert 256 < len(pieces) <= 400
    for text in (*CAPTIONS, "gröser 漢字 🙂", "a\ttab"):
        ids = pieces.encode(text)
        assert all(0 < i < len(pieces) for i in ids)  # 0 is "unknown"
        assert pieces.decode(ids) == " ".join(text.split())
    assert pieces.decode(pieces.encode("ＳＴＲＡßＥ")) == "strasse"
    assert pieces.encode("A Bright CAT") == pieces.encode("a bright cat")
    assert len(pieces.encode(CAPTIONS[0])) <= len(CAPTIONS[0].split())
    assert pieces.encode("") == []
    path = pieces.save(tmp_path / "text")
    assert path.stat().st_size < 10_000
    again = TextTokenizer.load(tmp_path / "text")
    assert again.digest == pieces.digest and again.encode("dog") == pieces.encode("dog")
    assert [p.name for p in path.parent.iterdir()] == ["text.model"]


def test_training_repeats(tmp_path: Path) -> None:
    first, second = (train_text_tokenizer(CAPTIONS, 400) for _ in range(2))
    assert first.digest == second.digest
    assert train_text_tokenizer(CAPTIONS[:1], 400).digest != first.digest


def test_bad_captions_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no captions"):
        train_text_tokenizer(["", "  "], 400)
    with pytest.raises(ValueError, match="100 pieces do not hold 256 bytes"):
        train_text_tokenizer(CAPTIONS, 100)
    with pytest.raises(FileNotFoundError, match="evatok text train"):
        TextTokenizer.load(tmp_path)
    for content in (b"", b"no model"):
        (tmp_path / "text.model").write_bytes(content)
        with pytest.raises(ValueError, match="not a SentencePiece model"):
            TextTokenizer.load(tmp_path)


# --- the vocabulary and the prompt ---


def test_text_lies_behind_all_other_tokens(vocabulary: Vocabulary, with_text: Vocabulary) -> None:
    assert with_text.size == vocabulary.size + 1 + PIECES
    assert with_text.text == vocabulary.size
    assert with_text.kinds[: vocabulary.size].tolist() == vocabulary.kinds.tolist()
    assert set(with_text.kinds[vocabulary.size :].tolist()) == {NEVER}
    assert with_text.class_token(2) == vocabulary.class_token(2)
    # what was written before there was text reads as without
    old = vocabulary.model_dump(mode="json")
    del old["num_text"]
    assert Vocabulary.model_validate(old) == vocabulary


def test_the_prompt(with_text: Vocabulary, frames: FrameCondition) -> None:
    first = with_text.text + 1
    expected = [with_text.text, first + 3, first, with_text.separator]
    assert text_prompt(with_text, [3, 0]).tolist() == expected
    for wrong in ([PIECES], [-1]):
        with pytest.raises(ValueError, match=r"not all in \[0, 9\)"):
            text_prompt(with_text, wrong)
    whole = with_text.longest(4)
    assert longest_sequence(with_text, None, TEXT) == 2 + TEXT.max_pieces + whole
    assert longest_sequence(with_text, None) == 1 + whole


def test_pieces_and_condition_go_together(
    vocabulary: Vocabulary, with_text: Vocabulary, make_gpt: Callable[..., GPT]
) -> None:
    with pytest.raises(ValueError, match="0 pieces of text and a text condition"):
        make_gpt(vocabulary, text=TEXT)
    with pytest.raises(ValueError, match="9 pieces of text and no text condition"):
        make_gpt(with_text)


def test_a_model_with_text_is_saved_and_loaded(text_gpt: GPT, tmp_path: Path) -> None:
    text_gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert (again.text, again.vocabulary) == (TEXT, text_gpt.vocabulary)


# --- shards ---


def describe(first: int, clips: Tensor, labels: Tensor, videos: Tensor) -> list[list[int]]:
    return [[label] * (1 + i % 3) for i, label in enumerate(labels.tolist(), first)]


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    clips = torch.rand(6, 3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    yield clips[:4], rows[:4] % 3, rows[:4]
    yield clips[4:], rows[4:] % 3, rows[4:]


@pytest.fixture
def folder(tmp_path: Path, with_text: Vocabulary, frames: FrameCondition, tokenizer) -> Path:
    for split in ("train", "test"):
        write_tokens(
            tmp_path / split,
            batches(),
            tokenizer,
            uniform(2, 4),
            with_text,
            frames,
            text=TEXT,
            describe=describe,
        )
    return tmp_path


def test_a_caption_takes_the_place_of_the_class(folder: Path, with_text: Vocabulary) -> None:
    tokens = TokenSet(folder / "train")
    assert tokens.text == TEXT
    for clip in range(6):
        prompt = text_prompt(with_text, [clip % 3] * (1 + clip % 3)).tolist()
        sequence = tokens.sequence(clip, Condition.TEXT).tolist()
        assert tokens.condition_length(clip, Condition.TEXT) == len(prompt)
        assert sequence == prompt + tokens.sequence(clip).tolist()[1:]
        assert tokens.lengths(Condition.TEXT)[clip] == len(sequence)


def test_text_and_shards_must_fit(
    tmp_path: Path, vocabulary: Vocabulary, with_text: Vocabulary, tokenizer
) -> None:
    def write(name: str, vocabulary: Vocabulary, **text: object) -> TokenSet:
        return write_tokens(
            tmp_path / name,
            batches(),
            tokenizer,
            uniform(2, 4),
            vocabulary,
            **text,  # type: ignore[arg-type]
        )

    with pytest.raises(ValueError, match="0 pieces of text and a text condition"):
        write("a", vocabulary, text=TEXT, describe=describe)
    with pytest.raises(ValueError, match="go together"):
        write("a", with_text, text=TEXT)
    short = TextCondition(max_pieces=2, digest="toy")
    with pytest.raises(ValueError, match=r"a caption of 3 pieces; .* at most 2"):
        write("a", with_text, text=short, describe=describe)
    assert not (tmp_path / "a").exists()
    plain = write("plain", vocabulary)
    with pytest.raises(ValueError, match="without text conditions"):
        plain.sequence(0, Condition.TEXT)
    # shards of a writer that knew no text are taken as they are
    meta = (tmp_path / "plain" / META).read_text()
    old = meta.replace(' "text": null,\n', "").replace(',\n  "num_text": 0', "")
    assert len(old) < len(meta) - 30
    (tmp_path / "plain" / META).write_text(old)
    again = write("plain", vocabulary)
    assert np.array_equal(again.sequence(3), plain.sequence(3))


# --- training and sampling ---


def test_texts_are_learned(folder: Path, tmp_path: Path) -> None:
    """The captions tell the classes apart, so greedy samples of them are clips of these classes."""
    config = GeneratorConfig.model_validate(
        {
            "tokens": folder,
            "model": {"width": 32, "layers": 2, "heads": 2, "hidden": 64},
            "frame_share": 0.2,
            "text_share": 0.5,
            "label_dropout": 0.1,
            "train": {
                "steps": 80,
                "batch_size": 12,
                "validate_every": 0,
                "save_every": 0,
                "log_every": 40,
                "optimizer": {"lr": 1e-2},
                "schedule": {"name": "wsd", "warmup_steps": 5},
            },
            "expect": ExpectedTokens(
                codebook_size=12,
                levels=(1, 2, 5),
                num_blocks=4,
                num_classes=3,
                mean_length=13,
                frames=FrameCondition(num_frames=5, prefix=(5, 2)),
                num_text=PIECES,
                text=TEXT,
            ).model_dump(),
        }
    )
    stage = GeneratorStage(config)
    before = stage.validate(stage.model, 0).scalars
    model = train(stage, config.train, tmp_path / "run", config)
    assert isinstance(model, GPT) and model.text == TEXT
    after = stage.validate(model, 1).scalars
    # six clips, two of a class: a caption of one length leaves one
    assert after["cross_entropy_text"] < 0.3 * before["cross_entropy_text"]
    greedy = SamplingConfig(temperature=0)
    pieces = [[clip % 3] * (1 + clip % 3) for clip in range(3)]
    requests = text_requests(model.vocabulary, TEXT, pieces, range(3), greedy)
    for clip, blocks in enumerate(sample(model, requests).blocks()):
        own = [stage.tokens.sequence(i)[1:].tolist() for i in (clip, clip + 3)]
        assert model.vocabulary.encode_blocks(blocks).tolist() in own


def test_mixed_conditions_share_a_batch(text_gpt: GPT) -> None:
    """A request's clip is the same alone and among others, guided and not."""
    vocabulary, frames = text_gpt.vocabulary, text_gpt.frames
    assert frames is not None
    generator = torch.Generator().manual_seed(3)
    requests: list[Request] = []
    for i in range(24):
        settings = SamplingConfig(guidance=[1.0, 2.5][i % 2])
        if i % 6 == 4:
            given = [torch.randint(12, (k,), generator=generator) for k in frames.prefix]
            tokens = Tokens.from_blocks([given])
            requests += frame_requests(vocabulary, frames, tokens, [i], SamplingConfig())
        elif i % 3 == 0:
            requests += class_requests(vocabulary, [i % 2], [i], settings)
        else:
            text = torch.randint(PIECES, (1 + i % 4,), generator=generator).tolist()
            requests += text_requests(vocabulary, TEXT, [text], [i], settings)
    together = sample(text_gpt, requests, batch_size=10).blocks()
    for request, blocks in zip(requests, together, strict=True):
        alone = sample(text_gpt, [request]).blocks()[0]
        assert [b.tolist() for b in alone] == [b.tolist() for b in blocks]


def test_guidance_of_text_is_against_the_null_condition(text_gpt: GPT) -> None:
    """Greedy and guided, token by token with full forwards."""
    vocabulary, scale = text_gpt.vocabulary, 3.0
    (request,) = text_requests(
        vocabulary, TEXT, [[1, 5, 2]], [0], SamplingConfig(guidance=scale, temperature=0)
    )
    found = vocabulary.encode_blocks(sample(text_gpt, [request]).blocks()[0]).tolist()
    prompts = [text_prompt(vocabulary, [1, 5, 2]), class_prompt(vocabulary, None)]
    kinds = vocabulary.kinds.tolist()
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < len(found):
            rows = [torch.cat([p, torch.tensor(expected, dtype=torch.int64)]) for p in prompts]
            c, u = (text_gpt(r, torch.tensor([0, len(r)], dtype=torch.int32))[-1] for r in rows)
            logits = u + scale * (c - u)
            due = kinds[found[len(expected)]]  # the grammar has tests of its own
            logits[vocabulary.kinds != due] = -torch.inf
            expected.append(int(logits.argmax()))
    assert found == expected


def test_texts_that_the_model_does_not_take(text_gpt: GPT) -> None:
    for text in ([], [1] * 5):
        with pytest.raises(ValueError, match=f"a text of {len(text)} pieces; .* takes 1 to 4"):
            text_requests(text_gpt.vocabulary, TEXT, [text], [0], SamplingConfig())


# --- other engines ---


def test_the_grammar_of_other_engines_takes_text(text_gpt: GPT) -> None:
    vocabulary = text_gpt.vocabulary
    processor = GrammarLogitsProcessor(vocabulary, text_gpt.frames)
    blocks = [torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([4]), torch.tensor([5])]
    clip = vocabulary.encode_blocks(blocks)
    ours = torch.cat([class_prompt(vocabulary, 1), clip])
    text = text_prompt(vocabulary, [1, 2, 3])
    theirs = torch.cat([text, clip])
    for end in range(len(clip) + 1):
        a = processor.allowed(ours[None, : 1 + end])
        b = processor.allowed(theirs[None, : len(text) + end])
        assert torch.equal(a, b)
    given = frames_prompt(vocabulary, [torch.arange(5), torch.arange(2)])
    assert int(processor.due(given[None])) == 1
    table = token_table(vocabulary)
    assert table["text"] == vocabulary.text and table["first_piece"] == vocabulary.text + 1


def test_export_and_import_keep_text(text_gpt: GPT, tmp_path: Path) -> None:
    from generator.export.checkpoint import export_llama, import_llama

    export_llama(text_gpt, tmp_path / "llama")
    again = import_llama(tmp_path / "llama")
    assert (again.text, again.max_tokens) == (TEXT, text_gpt.max_tokens)
    prompt = text_prompt(text_gpt.vocabulary, [4, 0])
    cu_seqlens = torch.tensor([0, len(prompt)], dtype=torch.int32)
    with torch.no_grad():
        assert torch.equal(again(prompt, cu_seqlens), text_gpt(prompt, cu_seqlens))
