"""Token shards: clips written once as the sequences that the GPT learns.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.files import atomic_folder
from evatok.core.loading.records import read_record
from generator.conditions import (
    FrameCondition,
    PrefixAssigner,
    TextCondition,
    check_text,
    class_prompt,
    frames_prompt,
    text_prompt,
)
from generator.data.token_set import FORMAT, META, REMEDY, Meta, TokenSet, dtype_of
from generator.grammar import Vocabulary
from tokenizer.tokens import Tokens

log = logging.getLogger(__name__)


class Encoder(Protocol):
    """Interface of a tokenizer for shards; `VideoTokenizer` is one."""

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


def _identity(path: Path) -> dict[str, Any] | None:
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


# Clips (B, 3, F, H, W) float32 in [−1, 1]; labels (B,) int64, −1 without class; videos (B,) int64
Batch = tuple[Tensor, Tensor, Tensor]


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
        assign: PrefixAssigner,
        vocabulary: Vocabulary,
        frames: FrameCondition | None = None,
        note: Mapping[str, Any] | None = None,
        text: TextCondition | None = None,
        describe: Describe | None = None,
        classes: bool = True,
    ) -> None:
        """Say what goes in.

        Args:
            directory: made under another name and renamed when complete.
            tokenizer: in eval mode.
            assign: how many tokens each block gets; with a prefix for frame prediction.
            vocabulary: of the model to train.
            frames: how frame conditions are made; None writes none.
            note: where the tokens come from, anything that JSON can hold.
            text: how texts become conditions; None writes none.
            describe: the pieces of each clip's caption; needed for text.
            classes: also class-conditional sequences; a model that only predicts frames needs none.

        Raises:
            EvatokError: conditions that do not go together.
        """
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
            damaged = [
                name for name, seen in files.items() if seen != _identity(self.directory / name)
            ]
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
        dtype = dtype_of(self.vocabulary)
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
        files = {path.name: _identity(path) for path in sorted(partial.iterdir())}
        (partial / META).write_text(json.dumps({**self.meta, "files": files}, indent=1))


def _class_sequences(
    clips: Tensor,
    labels: Tensor,
    tokenizer: Encoder,
    assign: PrefixAssigner,
    vocabulary: Vocabulary,
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
    assign: PrefixAssigner,
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
