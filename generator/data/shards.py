"""Token shards: clips written once as the sequences that the GPT learns, then mapped into memory.

Every clip is stored as a class-conditional sequence and, if the model predicts frames, as a
frame-conditional one; a model that only predicts frames needs no class-conditional ones, which
cost a pass of the tokenizer. For a model with text the text condition is stored too, which
replaces the class of the first. Several clips may come from one video. A folder is complete or
absent.

Shape letters: B batch, F frames, H W pixels, T blocks, N clips.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import atomic_folder
from evatok.core.loading.arrays import ArrayError, read_npy
from evatok.core.loading.records import read_record
from generator.conditions import (
    Assigner,
    Condition,
    FrameCondition,
    TextCondition,
    check_text,
    class_prompt,
    frames_prompt,
    text_prompt,
)
from generator.grammar import Vocabulary
from tokenizer.tokens import Tokens

log = logging.getLogger(__name__)

FORMAT = 1
META = "tokens.json"
REMEDY = "delete its folder and write the tokens anew"
CHUNK = 2**24  # tokens that are looked at together when a set is opened


class Encoder(Protocol):
    """What shards need of a tokenizer; `VideoTokenizer` is one."""

    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        """Tokens of clips (B, 3, F, H, W) in [−1, 1], assigned (B, T)."""
        ...


class Describe(Protocol):
    """Writes the captions of clips."""

    def __call__(
        self, first: int, clips: Tensor, labels: Tensor, videos: Tensor
    ) -> list[list[int]]:
        """Pieces of the caption of each clip.

        Args:
            first: number of the first of these clips in the set.
            clips: (B, 3, F, H, W) float32 in [−1, 1].
            labels: (B,) int64, −1 for a clip without class.
            videos: (B,) int64, as in the batches.
        """
        ...


class Meta(BaseModel):
    """tokens.json."""

    format: Literal[1]
    vocabulary: Vocabulary
    frames: FrameCondition | None
    text: TextCondition | None = None
    classes: bool = True
    note: dict[str, Any]
    files: dict[str, dict[str, Any]] = {}  # bytes and SHA-256 of each


def _numbers(path: Path) -> np.ndarray:
    """The whole numbers (N,) int64 of a file."""
    if not path.is_file():
        raise EvatokError(f"{path} is missing: {REMEDY}")
    try:
        array = read_npy(path)
    except ArrayError as error:
        raise EvatokError(f"{error}: {REMEDY}") from None
    if array.ndim != 1 or array.dtype != np.int64:
        raise EvatokError(f"{path} holds {array.dtype} {array.shape}, not int64 (N,): {REMEDY}")
    return array


class _Ragged:
    """Sequences of uneven length in one flat file, every token in the vocabulary."""

    def __init__(self, directory: Path, name: str, vocabulary: Vocabulary) -> None:
        dtype, offsets = _dtype(vocabulary), _numbers(directory / f"{name}.npy")
        path = directory / f"{name}.bin"
        if len(offsets) < 2 or offsets[0] or (np.diff(offsets) < 1).any():
            raise EvatokError(f"{directory / name}.npy does not ascend from 0: {REMEDY}")
        count = int(offsets[-1])
        if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
            raise EvatokError(f"{path} does not hold {count} tokens: {REMEDY}")
        self.offsets = offsets
        self.flat = np.memmap(path, dtype, "r", shape=(count,))
        for start in range(0, count, CHUNK):
            part = self.flat[start : start + CHUNK]
            if int(part.min()) < 0 or int(part.max()) >= vocabulary.size:
                raise EvatokError(
                    f"{path} holds tokens that are not in [0, {vocabulary.size}): {REMEDY}"
                )

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


class TokenSet:
    """The sequences of a set of clips, mapped from disk.

    Attributes:
        vocabulary: what the tokens mean.
        frames: how frame conditions were made; None if there are none.
        text: how texts become conditions; None if there are none.
        classes: whether there are class-conditional sequences.
        labels: (N,) int64, class of each clip, −1 without.
        videos: (N,) int64, video that each clip was cut from; several clips may share one.
        note: what the writer said about where the tokens come from.
    """

    def __init__(self, directory: str | Path) -> None:
        """Open shards that `write_tokens` has finished.

        Raises:
            FileNotFoundError: there are none.
            EvatokError: written in another format, or damaged.
        """
        directory = Path(directory)
        if not (directory / META).is_file():
            raise MissingFileError(f"{directory} holds no tokens ({META} is missing)")
        meta = read_record(Meta, directory / META, REMEDY)
        self.vocabulary, self.frames, self.text = meta.vocabulary, meta.frames, meta.text
        self.note: dict[str, Any] = meta.note
        self.labels = _numbers(directory / "labels.npy")
        self.videos = _numbers(directory / "videos.npy")
        self.classes = meta.classes
        self._class = _Ragged(directory, "class", self.vocabulary) if self.classes else None
        self._frames = _Ragged(directory, "frames", self.vocabulary) if self.frames else None
        self._text = _Ragged(directory, "text", self.vocabulary) if self.text else None
        rows = [row for row in (self._class, self._frames, self._text) if row is not None]
        if len({len(self.labels), len(self.videos), *(len(row.lengths) for row in rows)}) > 1:
            raise EvatokError(f"{directory} holds files of different numbers of clips: {REMEDY}")
        if self.labels.max() >= len(self.vocabulary.class_names) or self.labels.min() < -1:
            raise EvatokError(f"{directory / 'labels.npy'} names classes beyond {META}: {REMEDY}")

    def __len__(self) -> int:
        """N, clips."""
        return len(self.labels)

    def sequence(self, index: int, condition: Condition = Condition.CLASS) -> np.ndarray:
        """The tokens of a clip with their condition, not to be written to."""
        if condition != Condition.TEXT:
            return self._store(condition)[index]
        whole = self._store(Condition.CLASS)[index]
        return np.concatenate([self._store(condition)[index], whole[1:]])

    def lengths(self, condition: Condition | None = None) -> np.ndarray:
        """(N,) int64, tokens of every sequence, its condition included.

        Without a condition those of the class-conditional sequences, or of the only ones.
        """
        if condition is None:
            condition = Condition.CLASS if self.classes else Condition.FRAMES
        lengths = self._store(condition).lengths
        if condition != Condition.TEXT:
            return lengths
        return lengths + self._store(Condition.CLASS).lengths - 1

    def mean_tokens(self) -> float:
        """Codes of a clip, on average; without class-conditional sequences only those predicted."""
        if self.classes or self.frames is None:
            return float(self.lengths().mean()) - 1 - self.vocabulary.num_blocks
        blocks = self.vocabulary.num_blocks - self.frames.kept_blocks
        return float(self.lengths(Condition.FRAMES).mean()) - self.frames.num_tokens - blocks

    def condition_length(self, index: int, condition: Condition = Condition.CLASS) -> int:
        """Tokens of the condition of a clip."""
        if condition == Condition.TEXT:
            return len(self._store(condition)[index])
        return self.frames.num_tokens if condition == Condition.FRAMES and self.frames else 1

    def _store(self, condition: Condition) -> _Ragged:
        """Whole sequences; of text the conditions alone."""
        store, kind = {
            Condition.CLASS: (self._class, "class"),
            Condition.FRAMES: (self._frames, "frame"),
            Condition.TEXT: (self._text, "text"),
        }[condition]
        if store is None:
            raise EvatokError(f"these tokens were written without {kind} conditions")
        return store


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    return np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.int32)


def _told(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file, None where it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _with_defaults(meta: Mapping[str, Any]) -> dict[str, Any]:
    """META as its reader sees it: what an older writer did not know yet is at its default."""
    plain: dict[str, Any] = json.loads(json.dumps(meta))
    vocabulary = Vocabulary.model_validate(plain["vocabulary"]).model_dump(mode="json")
    return {"text": None, "classes": True} | plain | {"vocabulary": vocabulary}


Batch = tuple[Tensor, Tensor, Tensor]  # clips, labels, videos; see `write_tokens`


@dataclass(frozen=True)
class Encoded:
    """A batch of clips as sequences.

    Attributes:
        sequences: for each kind ("class", "frames", "text") the sequences (L,) of all clips; of
            texts only the prompts.
        labels: (B,) int64, −1 without class.
        videos: (B,) int64.
    """

    sequences: dict[str, list[np.ndarray]]
    labels: np.ndarray
    videos: np.ndarray


class Writer:
    """Makes one folder of tokens: what goes into it, and how it is put together.

    Attributes:
        directory: made under another name and renamed when complete.
        meta: what the folder says of itself; another one's folder is refused.
    """

    def __init__(
        self,
        directory: str | Path,
        tokenizer: Encoder,
        assign: Assigner,
        vocabulary: Vocabulary,
        frames: FrameCondition | None = None,
        note: Mapping[str, Any] | None = None,
        text: TextCondition | None = None,
        describe: Describe | None = None,
        classes: bool = True,
    ) -> None:
        """As `write_tokens`."""
        if not classes and (frames is None or text is not None):
            raise EvatokError("tokens without classes need frame conditions, and no text")
        check_text(vocabulary, text)
        if (text is None) != (describe is None):
            raise EvatokError("a text condition and what describes clips go together")
        if frames:
            frames.check(vocabulary)
        self.directory = Path(directory)
        self.tokenizer, self.assign = tokenizer, assign
        self.vocabulary, self.frames = vocabulary, frames
        self.text, self.describe = text, describe
        meta = {
            "format": FORMAT,
            "vocabulary": vocabulary.model_dump(mode="json"),
            "frames": frames.model_dump(mode="json") if frames else None,
            "text": text.model_dump(mode="json") if text else None,
            "note": dict(note or {}),
        }
        meta |= {} if classes else {"classes": False}
        self.meta: dict[str, Any] = json.loads(json.dumps(meta))
        found = {"class": classes, "frames": frames is not None, "text": text is not None}
        self.kinds = tuple(kind for kind, is_there in found.items() if is_there)

    def finished(self) -> TokenSet | None:
        """The tokens, if they are all there.

        Raises:
            EvatokError: the folder holds something else.
        """
        if (self.directory / META).is_file():
            found = read_record(Meta, self.directory / META, REMEDY).model_dump(mode="json")
            files = found.pop("files")
            if _with_defaults(found) != _with_defaults(self.meta):
                raise EvatokError(
                    f"{self.directory} holds tokens of other settings; "
                    f"delete it or name another folder"
                )
            damaged = [name for name, told in files.items() if told != _told(self.directory / name)]
            if not damaged:
                return TokenSet(self.directory)
            log.warning("%s is damaged (%s) and is made again", self.directory, ", ".join(damaged))
            shutil.rmtree(self.directory)
        if self.directory.exists() and any(self.directory.iterdir()):
            raise EvatokError(
                f"{self.directory} is not empty but holds no finished tokens; delete it"
            )
        return None

    @torch.no_grad()
    def encode(self, batch: Batch, first: int) -> Encoded:
        """The sequences of a batch, whose first clip is so far into the set."""
        clips, labels, videos = batch
        rows: dict[str, list[Tensor]] = {}
        if "class" in self.kinds:
            rows["class"] = _class_sequences(
                clips, labels, self.tokenizer, self.assign, self.vocabulary
            )
        if self.frames:
            rows["frames"] = _frame_sequences(
                clips, self.tokenizer, self.assign, self.vocabulary, self.frames
            )
        if self.text and self.describe:
            captions = self.describe(first, clips, labels, videos)
            rows["text"] = _text_prompts(captions, self.vocabulary, self.text)
        dtype = _dtype(self.vocabulary)
        return Encoded(
            {kind: [row.cpu().numpy().astype(dtype) for row in rows[kind]] for kind in self.kinds},
            labels.cpu().numpy().astype(np.int64),
            videos.cpu().numpy().astype(np.int64),
        )

    def write(self, batches: Iterable[Encoded]) -> TokenSet:
        """Put all batches of the set into its folder."""
        with atomic_folder(self.directory) as partial:
            self._fill(partial, batches)
        tokens = TokenSet(self.directory)
        mean = tokens.lengths().mean()
        log.info("wrote %d clips, %.1f tokens each, to %s", len(tokens), mean, self.directory)
        return tokens

    def _fill(self, partial: Path, batches: Iterable[Encoded]) -> None:
        directory = self.directory
        labels, videos = [], []
        lengths: dict[str, list[int]] = {kind: [] for kind in self.kinds}
        files = {kind: (partial / f"{kind}.bin").open("wb") for kind in self.kinds}
        try:
            for batch in batches:
                for kind, rows in batch.sequences.items():
                    files[kind].write(np.concatenate(rows).tobytes())
                    lengths[kind] += [len(row) for row in rows]
                labels.append(batch.labels)
                videos.append(batch.videos)
        finally:
            for file in files.values():
                file.close()
        if not labels:
            raise EvatokError(f"no clip to write into {directory}")
        for kind, counts in lengths.items():
            np.save(partial / f"{kind}.npy", np.cumsum([0, *counts], dtype=np.int64))
        np.save(partial / "labels.npy", np.concatenate(labels))
        np.save(partial / "videos.npy", np.concatenate(videos))
        files = {path.name: _told(path) for path in sorted(partial.iterdir())}
        (partial / META).write_text(json.dumps({**self.meta, "files": files}, indent=1))


def write_tokens(
    directory: str | Path,
    batches: Iterable[Batch],
    tokenizer: Encoder,
    assign: Assigner,
    vocabulary: Vocabulary,
    frames: FrameCondition | None = None,
    note: Mapping[str, Any] | None = None,
    text: TextCondition | None = None,
    describe: Describe | None = None,
    classes: bool = True,
) -> TokenSet:
    """Tokenize clips into shards, once: finished shards of the same settings are opened as is.

    Args:
        directory: made under another name and renamed when complete.
        batches: clips (B, 3, F, H, W) float32 in [−1, 1], labels (B,) int64, −1 for a clip without
            class, and videos (B,) int64.
        tokenizer: in eval mode.
        assign: how many tokens each block gets; with a prefix for frame prediction.
        vocabulary: of the model to train.
        frames: how frame conditions are made; None writes none.
        note: where the tokens come from, anything that JSON can hold.
        text: how texts become conditions; None writes none.
        describe: the pieces of each clip's caption; needed for text.
        classes: also class-conditional sequences; a model that only predicts frames needs none.

    Raises:
        EvatokError: the folder holds something else, there was no clip, or a caption is too long.
    """
    writer = Writer(directory, tokenizer, assign, vocabulary, frames, note, text, describe, classes)
    done = writer.finished()
    if done is not None:
        return done

    def encoded() -> Iterator[Encoded]:
        first = 0
        for batch in batches:
            yield writer.encode(batch, first)
            first += len(batch[0])

    return writer.write(encoded())


def _class_sequences(
    clips: Tensor, labels: Tensor, tokenizer: Encoder, assign: Assigner, vocabulary: Vocabulary
) -> list[Tensor]:
    blocks = tokenizer.encode(clips, assign(clips)).to("cpu").blocks()
    prompts = [class_prompt(vocabulary, None if x < 0 else x) for x in labels.tolist()]
    return [
        torch.cat([prompt, vocabulary.encode_blocks(row)])
        for prompt, row in zip(prompts, blocks, strict=True)
    ]


def _text_prompts(
    captions: list[list[int]], vocabulary: Vocabulary, text: TextCondition
) -> list[Tensor]:
    longest = max(map(len, captions))
    if longest > text.max_pieces:
        raise EvatokError(
            f"a caption of {longest} pieces; the text condition has at most {text.max_pieces}"
        )
    return [text_prompt(vocabulary, pieces) for pieces in captions]


def _frame_sequences(
    clips: Tensor,
    tokenizer: Encoder,
    assign: Assigner,
    vocabulary: Vocabulary,
    frames: FrameCondition,
) -> list[Tensor]:
    prefix = torch.tensor([frames.prefix], device=clips.device).repeat(len(clips), 1)
    condition = tokenizer.encode(frames.pad(clips), prefix).to("cpu").blocks()
    target = tokenizer.encode(clips, assign(clips, frames.prefix)).to("cpu").blocks()
    return [
        torch.cat(
            [
                frames_prompt(vocabulary, given),
                vocabulary.encode_blocks(row[frames.kept_blocks :]),
            ]
        )
        for given, row in zip(condition, target, strict=True)
    ]
