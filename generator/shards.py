"""Token shards: clips written once as the sequences that the GPT learns, then mapped into memory.

Every clip is stored as a class-conditional sequence and, if the model predicts frames, as a
frame-conditional one. Several clips may come from one video. A folder is complete or absent.

Shape letters: B batch, F frames, H W pixels, T blocks, N clips.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from generator.conditions import Assigner, FrameCondition, class_prompt, frames_prompt
from generator.grammar import Vocabulary
from tokenizer.tokens import Tokens

log = logging.getLogger(__name__)

FORMAT = 1
META = "tokens.json"


class Encoder(Protocol):
    """What shards need of a tokenizer; `VideoTokenizer` is one."""

    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        """Tokens of clips (B, 3, F, H, W) in [−1, 1], assigned (B, T)."""
        ...


class _Ragged:
    """Sequences of uneven length in one flat file."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype) -> None:
        self.offsets = np.load(directory / f"{name}.npy")
        path, count = directory / f"{name}.bin", int(self.offsets[-1])
        if path.stat().st_size != count * dtype.itemsize:
            raise ValueError(f"{path} does not hold {count} tokens; delete its folder and rewrite")
        self.flat = np.memmap(path, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)

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
        labels: (N,) int64, class of each clip, −1 without.
        videos: (N,) int64, video that each clip was cut from; several clips may share one.
        note: what the writer said about where the tokens come from.
    """

    def __init__(self, directory: str | Path) -> None:
        """Open shards that `write_tokens` has finished.

        Raises:
            FileNotFoundError: there are none.
            ValueError: written in another format, or damaged.
        """
        directory = Path(directory)
        if not (directory / META).is_file():
            raise FileNotFoundError(f"{directory} holds no tokens ({META} is missing)")
        meta = json.loads((directory / META).read_text())
        if meta.get("format") != FORMAT:
            raise ValueError(f"{directory / META} is not of format {FORMAT}; write it anew")
        self.vocabulary = Vocabulary.model_validate(meta["vocabulary"])
        self.frames = FrameCondition.model_validate(meta["frames"]) if meta["frames"] else None
        self.note: dict[str, Any] = meta["note"]
        self.labels = np.load(directory / "labels.npy")
        self.videos = np.load(directory / "videos.npy")
        dtype = _dtype(self.vocabulary)
        self._class = _Ragged(directory, "class", dtype)
        self._frames = _Ragged(directory, "frames", dtype) if self.frames else None

    def __len__(self) -> int:
        """N, clips."""
        return len(self.labels)

    def sequence(self, index: int, is_frames: bool = False) -> np.ndarray:
        """The tokens of a clip with their condition, a read-only view of the file."""
        return self._store(is_frames)[index]

    def lengths(self, is_frames: bool = False) -> np.ndarray:
        """(N,) int64, tokens of every sequence, its condition included."""
        return self._store(is_frames).lengths

    def condition_length(self, is_frames: bool = False) -> int:
        """Tokens of the condition, the same for every clip."""
        return self.frames.num_tokens if is_frames and self.frames else 1

    def _store(self, is_frames: bool) -> _Ragged:
        if not is_frames:
            return self._class
        if self._frames is None:
            raise ValueError("these tokens were written without frame conditions")
        return self._frames


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    return np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.int32)


Batch = tuple[Tensor, Tensor, Tensor]  # clips, labels, videos; see `write_tokens`


@dataclass(frozen=True)
class Encoded:
    """A batch of clips as sequences.

    Attributes:
        sequences: for each kind ("class", "frames") the sequences (L,) of all clips.
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
    ) -> None:
        """As `write_tokens`."""
        if frames:
            frames.check(vocabulary)
        self.directory = Path(directory)
        self.tokenizer, self.assign = tokenizer, assign
        self.vocabulary, self.frames = vocabulary, frames
        meta = {
            "format": FORMAT,
            "vocabulary": vocabulary.model_dump(mode="json"),
            "frames": frames.model_dump(mode="json") if frames else None,
            "note": dict(note or {}),
        }
        self.meta: dict[str, Any] = json.loads(json.dumps(meta))
        self.kinds = ("class", "frames") if frames else ("class",)

    def finished(self) -> TokenSet | None:
        """The tokens, if they are all there.

        Raises:
            ValueError: the folder holds something else.
        """
        if (self.directory / META).is_file():
            if json.loads((self.directory / META).read_text()) != self.meta:
                raise ValueError(
                    f"{self.directory} holds tokens of other settings; "
                    f"delete it or name another folder"
                )
            return TokenSet(self.directory)
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ValueError(
                f"{self.directory} is not empty but holds no finished tokens; delete it"
            )
        return None

    @torch.no_grad()
    def encode(self, batch: Batch) -> Encoded:
        """The sequences of a batch."""
        clips, labels, videos = batch
        rows = {
            "class": _class_sequences(clips, labels, self.tokenizer, self.assign, self.vocabulary)
        }
        if self.frames:
            rows["frames"] = _frame_sequences(
                clips, self.tokenizer, self.assign, self.vocabulary, self.frames
            )
        dtype = _dtype(self.vocabulary)
        return Encoded(
            {kind: [row.cpu().numpy().astype(dtype) for row in rows[kind]] for kind in self.kinds},
            labels.cpu().numpy().astype(np.int64),
            videos.cpu().numpy().astype(np.int64),
        )

    def write(self, batches: Iterable[Encoded]) -> TokenSet:
        """Put all batches of the set into its folder."""
        directory = self.directory
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
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
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files.values():
                file.close()
        if not labels:
            raise ValueError(f"no clip to write into {directory}")
        for kind, counts in lengths.items():
            np.save(partial / f"{kind}.npy", np.cumsum([0, *counts], dtype=np.int64))
        np.save(partial / "labels.npy", np.concatenate(labels))
        np.save(partial / "videos.npy", np.concatenate(videos))
        (partial / META).write_text(json.dumps(self.meta, indent=1))
        os.replace(partial, directory)
        tokens = TokenSet(directory)
        mean = tokens.lengths().mean()
        log.info("wrote %d clips, %.1f tokens each, to %s", len(tokens), mean, directory)
        return tokens


def write_tokens(
    directory: str | Path,
    batches: Iterable[Batch],
    tokenizer: Encoder,
    assign: Assigner,
    vocabulary: Vocabulary,
    frames: FrameCondition | None = None,
    note: Mapping[str, Any] | None = None,
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

    Raises:
        ValueError: the folder holds something else, or there was no clip.
    """
    writer = Writer(directory, tokenizer, assign, vocabulary, frames, note)
    done = writer.finished()
    return done if done is not None else writer.write(map(writer.encode, batches))


def _class_sequences(
    clips: Tensor, labels: Tensor, tokenizer: Encoder, assign: Assigner, vocabulary: Vocabulary
) -> list[Tensor]:
    blocks = tokenizer.encode(clips, assign(clips)).blocks()
    prompts = [class_prompt(vocabulary, None if x < 0 else x) for x in labels.tolist()]
    return [
        torch.cat([prompt, vocabulary.encode_blocks(row).cpu()])
        for prompt, row in zip(prompts, blocks, strict=True)
    ]


def _frame_sequences(
    clips: Tensor,
    tokenizer: Encoder,
    assign: Assigner,
    vocabulary: Vocabulary,
    frames: FrameCondition,
) -> list[Tensor]:
    prefix = torch.tensor([frames.prefix], device=clips.device).repeat(len(clips), 1)
    condition = tokenizer.encode(frames.pad(clips), prefix).blocks()
    target = tokenizer.encode(clips, assign(clips, frames.prefix)).blocks()
    return [
        torch.cat(
            [
                frames_prompt(vocabulary, given),
                vocabulary.encode_blocks(row[frames.kept_blocks :]),
            ]
        ).cpu()
        for given, row in zip(condition, target, strict=True)
    ]
