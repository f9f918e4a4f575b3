"""Captions of what is measured, and the folder that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evatok.workflows.captions import (
    Thresholds,
    caption,
    captions,
    class_words,
    measure_clips,
    plain_caption,
)
from evatok.workflows.text import (
    CAPTIONS_FILE,
    Captioner,
    TextConfig,
    run_text,
    save_text,
    train_text,
)
from generator.conditions import Condition
from generator.data.token_set import TokenSet


def test_measures_of_known_clips() -> None:
    clips = torch.full((3, 3, 4, 2, 2), -1.0)
    clips[1] = 1
    clips[2, :, ::2] = 1  # white, black, white, black
    brightness, motion = measure_clips(clips)
    assert brightness.tolist() == pytest.approx([0, 1, 0.5], abs=1e-6)
    assert motion.tolist() == pytest.approx([0, 0, 1])
    clips = torch.rand(2, 3, 5, 6, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    brightness, motion = measure_clips(clips)
    for clip, light, moves in zip((clips.double() + 1) / 2, brightness, motion, strict=True):
        grey = 0.299 * clip[0] + 0.587 * clip[1] + 0.114 * clip[2]
        assert float(light) == pytest.approx(float(grey.mean()), abs=1e-6)
        steps = [(clip[:, i + 1] - clip[:, i]).abs().mean() for i in range(4)]
        assert float(moves) == pytest.approx(float(sum(steps) / 4), abs=1e-6)


def test_ranks_are_thirds() -> None:
    values = torch.arange(30.0)
    thresholds = Thresholds.from_values(values, values.flip(0))
    ranks = thresholds.ranks(values, values.flip(0))
    assert ranks[:, 0].tolist() == [-1] * 10 + [0] * 10 + [1] * 10
    assert ranks[:, 1].tolist() == ranks[:, 0].flip(0).tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [("Frogger", "Frogger"), ("HorseRace", "Horse Race"), ("UpNDown", "Up N Down"),
     ("YoYo", "Yo Yo"), ("snake_case", "snake case"), ("a bright clip", "a bright clip")],
)  # fmt: skip
def test_names_of_classes_in_words(name: str, words: str) -> None:
    assert class_words(name) == words


def test_the_plainest_caption() -> None:
    assert plain_caption("Frogger", 1, 1) == "a bright clip of Frogger with much motion"
    assert plain_caption("HorseRace", -1, 0) == "a dark clip of Horse Race"
    assert plain_caption(None, 0, -1) == "a clip with little motion"
    assert plain_caption(None) == "a clip"


def test_captions_say_what_is_so_and_only_that() -> None:
    random = np.random.default_rng(0)
    bright, dark = ("bright", "light"), ("dark", "dim")
    much, little = ("much", "a lot of"), ("little", "hardly any")
    for light in (-1, 0, 1):
        for moves in (-1, 0, 1):
            found = {caption("HorseRace", light, moves, random) for _ in range(200)}
            assert len(found) >= (5 if light == moves == 0 else 8)  # wordings
            text = "\n".join(found)
            assert any(word in text for word in bright) == (light == 1)
            assert any(word in text for word in dark) == (light == -1)
            assert any(word in text for word in much) == (moves == 1)
            assert any(word in text for word in little) == (moves == -1)
            assert "Horse Race" in text and not all("Horse Race" in line for line in found)
            for line in found:
                assert line == " ".join(line.split()) and line.strip(", ") == line and line


def test_a_caption_depends_on_its_own_clip_only() -> None:
    random = torch.Generator().manual_seed(0)
    ranks = torch.randint(-1, 2, (20, 2), generator=random)
    labels = torch.randint(-1, 2, (20,), generator=random)
    names = ("Left", "Right")
    whole = captions(ranks, labels, names, (3, 1))
    parts = [
        *captions(ranks[:7], labels[:7], names, (3, 1)),
        *captions(ranks[7:], labels[7:], names, (3, 1), first=7),
    ]
    assert whole == parts
    assert whole != captions(ranks, labels, names, (4, 1))
    assert not any("Left" in text or "Right" in text
                   for text, label in zip(whole, labels, strict=True) if label < 0)  # fmt: skip


# --- the folder ---


def config(footage: Path, cache: Path) -> TextConfig:
    data = {"size": 32, "workers": 1, "cache_dir": cache,
            "sources": [{"kind": "ucf101", "root": footage}]}  # fmt: skip
    return TextConfig.model_validate({"data": data, "clips": 30, "vocabulary_size": 400})


def test_from_clips_to_pieces(footage: Path, tmp_path: Path) -> None:
    settings = config(footage, tmp_path / "cache")
    result = train_text(settings, tmp_path / "text")
    assert result["captions"] == 30 and result["longest"] < 16
    captioner = Captioner.load(tmp_path / "text")
    assert captioner.pieces.digest == result["digest"]
    assert captioner.encode(["a clip of HorseRace"]) == captioner.encode(["a clip of Horse Race"])
    # again: the same; something else: refused
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "text").iterdir()}
    assert train_text(settings, tmp_path / "text") == result
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "text").iterdir()} == before
    other = settings.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match="holds something else; delete it"):
        train_text(other, tmp_path / "text")
    # files that do not belong together
    about = tmp_path / "text" / CAPTIONS_FILE
    about.write_text(about.read_text().replace(result["digest"], "0" * 16))
    with pytest.raises(ValueError, match="belongs to another"):
        Captioner.load(tmp_path / "text")
    about.unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.json is missing"):
        Captioner.load(tmp_path / "text")


def test_from_a_file_of_captions(tmp_path: Path) -> None:
    lines = ["a dog runs over a field", "a dog sleeps", "", "rain over a field"]
    (tmp_path / "captions.txt").write_text("\n".join(lines * 3))
    rows = [f'{i},"{line}"' for i, line in enumerate(lines * 3)]
    (tmp_path / "train.csv").write_text("\n".join(["id,caption", *rows]))
    plain = run_text(tmp_path / "captions.txt", tmp_path / "a", 300)
    table = run_text(tmp_path / "train.csv", tmp_path / "b", 300)
    assert plain["digest"] == table["digest"] and plain["thresholds"] is None
    captioner = Captioner.load(tmp_path / "a")
    assert captioner.encode(["dog"]) != captioner.encode(["rain"])
    with pytest.raises(ValueError, match="has no thresholds"):
        captioner.describe(("dog",), 0)
    (tmp_path / "wrong.csv").write_text("id,text\n1,a dog\n")
    with pytest.raises(ValueError, match="no column 'caption'"):
        run_text(tmp_path / "wrong.csv", tmp_path / "c")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        run_text(tmp_path / "latin.txt", tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="give settings"):
        run_text(tmp_path / "none.txt", tmp_path / "c")
    with pytest.raises(ValueError, match="hold 256 bytes"):
        save_text(lines, 100, None, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("from_file", [True, False])
def test_a_text_has_the_same_pieces_in_training_and_sampling(
    tmp_path: Path, from_file: bool
) -> None:
    """Only where captions are made of names of classes are words in them taken apart."""
    texts = ["a 3D clip in 4K of an iPhone", "a clip of HorseRace"]
    (tmp_path / "train.csv").write_text(
        "\n".join(["path,caption", *(f"{n}.mp4,{text}" for n, text in enumerate(texts))])
    )
    thresholds = None if from_file else Thresholds(brightness=(0.3, 0.6), motion=(0.1, 0.2))
    save_text([*texts, "a clip of Horse Race"], 300, thresholds, tmp_path / "text")
    captioner = Captioner.load(tmp_path / "text")
    files, ids, none = [tmp_path / "train.csv"], ["0.mp4", "1.mp4"], torch.zeros(0)
    trained = captioner.look_up(files, ids, 99)(0, none, none, torch.arange(2))
    assert trained == captioner.encode(texts)
    assert (trained[0] == captioner.pieces.encode(texts[0])) == from_file
    # the captions that are made of clips
    if not from_file:
        clips, labels = torch.zeros(8, 3, 2, 4, 4), torch.zeros(8, dtype=torch.int64)
        ranks = torch.tensor([[0, -1]] * 8)  # grey and still
        made = captions(ranks, labels, ["HorseRace"], (0,))
        described = captioner.describe(["HorseRace"], 0)(0, clips, labels, labels)
        assert described == [captioner.pieces.encode(text) for text in made]
        assert described == captioner.encode(made)


def test_tokens_with_captions(footage: Path, toy_dir: Path, tmp_path: Path) -> None:
    """The captions in the shards are those of the clips that were tokenized."""
    from evatok.workflows.tokens import TokensConfig, write_shards

    settings = config(footage, tmp_path / "cache")
    train_text(settings, tmp_path / "text")
    captioner = Captioner.load(tmp_path / "text")
    tokens = TokensConfig.model_validate(
        {"data": settings.data.model_dump(), "tokenizer": toy_dir / "final", "uniform": 1,
         "text": tmp_path / "text", "windows": 1}
    )  # fmt: skip
    write_shards(tokens, tmp_path / "tokens")
    shards = TokenSet(tmp_path / "tokens" / "test")
    assert shards.text is not None and shards.text.digest == captioner.pieces.digest
    names, first = shards.vocabulary.class_names, shards.vocabulary.text + 1
    texts = []
    for clip in range(len(shards)):
        end = shards.condition_length(clip, Condition.TEXT)
        prompt = shards.sequence(clip, Condition.TEXT)[1 : end - 1].astype(np.int64) - first
        texts.append(captioner.pieces.decode(prompt.tolist()))
        other = names[1 - shards.labels[clip]].casefold()
        assert other not in texts[-1]
    assert any("left" in text for text in texts) and any("right" in text for text in texts)
    again = write_shards(tokens, tmp_path / "tokens")
    assert again["test"]["clips"] == len(shards)


def test_tokens_with_the_captions_of_a_set(
    footage: Path, toy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each video's own caption, cut where it is too long; a video without one is named."""
    from evatok.workflows.tokens import TokensConfig, write_shards

    lists = []
    for split in ("train", "test"):
        listed = (footage / f"{split}list01.txt").read_text().splitlines()
        names = [line.split()[0] for line in listed]
        rows = [f'{name},"a square, number {name[-10:-4]}"' for name in names]
        lists.append(tmp_path / f"{split}.csv")
        lists[-1].write_text("\n".join(["path,caption", *rows]))
    run_text(lists[0], tmp_path / "text", 300)
    captioner = Captioner.load(tmp_path / "text")
    settings = TokensConfig.model_validate(
        {"data": config(footage, tmp_path / "cache").data.model_dump(), "uniform": 1,
         "tokenizer": toy_dir / "final", "text": tmp_path / "text", "windows": 2,
         "captions": lists, "max_pieces": 6}
    )  # fmt: skip
    with caplog.at_level("INFO"):
        write_shards(settings, tmp_path / "tokens")
    assert "12 of 12 captions are cut to 6 pieces" in caplog.text
    known = dict(line.split(",", 1) for line in lists[0].read_text().splitlines()[1:])
    names = list(known)  # in the order of the list, which numbers the videos
    shards = TokenSet(tmp_path / "tokens" / "train")
    assert len(shards) == 24
    for clip, video in enumerate(shards.videos.tolist()):
        prompt = shards.sequence(clip, Condition.TEXT)[1 : 1 + 6].astype(np.int64)
        pieces = captioner.pieces.encode(known[names[video]].strip('"'))
        assert (prompt - shards.vocabulary.text - 1).tolist() == pieces[:6]
    with pytest.raises(ValueError, match="captions need text"):
        TokensConfig.model_validate(settings.model_dump() | {"text": None})
    lists[1].write_text("path,caption\n")
    with pytest.raises(ValueError, match=r"8 of 8 videos, Left/.* have no caption in"):
        write_shards(settings, tmp_path / "other")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"path,caption\na,\xff\n", "is not UTF-8 text"),
        (b"path,caption\na," + b"x" * 200_000 + b"\n", "field larger than field limit"),
        (b"path,text\na,b\n", "has no column 'caption'"),
    ],
)
def test_damaged_lists_of_captions(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"captions.csv {said}|captions.csv is no table.*{said}"):
        run_text(path, tmp_path / "text", 300)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("caption\n" + "a bright clip\na dark clip\n" * 3, encoding="utf-8-sig")
    assert run_text(path, tmp_path / "text", 300)["captions"] == 6


def test_a_damaged_text_model_is_named(text_dir: Path, tmp_path: Path) -> None:
    """Also where the library's own message is no UTF-8."""
    data = (text_dir / "text" / "text.model").read_bytes()
    piece = data.index(b"<0x00>")
    for damage in (data[:50], data[:piece] + b"\xff" + data[piece + 1 :]):
        (tmp_path / "text.model").write_bytes(damage)
        with pytest.raises(ValueError, match="is not a SentencePiece model"):
            Captioner.load(tmp_path)
