"""Token shards as the training reads them: sequences mapped into memory, checked when opened.

`generator.data.shards` writes them. Shape letters: N clips.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.arrays import ArrayError, read_npy
from evatok.core.loading.records import read_record
from generator.conditions import Condition, FrameCondition, TextCondition
from generator.grammar import Vocabulary

FORMAT = 1
META = "tokens.json"
REMEDY = "delete its folder and write the tokens anew"
CHUNK = 2**24  # tokens that are looked at together when a set is opened


def dtype_of(vocabulary: Vocabulary) -> np.dtype:
    """Storage type of tokens."""
    return np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.int32)


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
        dtype, offsets = dtype_of(vocabulary), _numbers(directory / f"{name}.npy")
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
        """Open finished shards.

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
