"""Files that another engine needs beside the weights: the vocabulary, and the grammar as a mask.

An exported model (`generator.export.checkpoint`) is a Llama like any other, but its samples are
clips only if tokens that the grammar forbids are never drawn. `GrammarLogitsProcessor` sees to
that with nothing but the tokens so far, so that it does not mind how an engine batches, reorders
or pads its rows. A finished clip is followed by the end token, which is the null condition
(nothing more to say).

Shape letters: B batch, S tokens so far, T blocks, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from evatok.core.config import Config
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.records import read_record
from generator.conditions import FrameCondition, TextCondition
from generator.gpt import GPTConfig
from generator.grammar import CODE, DONE, LENGTH, Vocabulary

VOCABULARY_FILE = "vocabulary.json"


class Exported(Config):
    """vocabulary.json: what config.json of a Llama cannot say.

    Attributes:
        size: of the network, as ours are described.
        vocabulary: what the tokens mean.
        frames: how given frames become a condition, if the model predicts frames.
        text: how a text becomes a condition, if the model takes text; the pieces are those of
            text.model, a SentencePiece model.
        guidance: scale that the model samples with unless another is asked for; None: not told.
        tokens: ids by what they mean, for readers in other languages; follows from the above.
    """

    format: Literal[1] = 1
    size: GPTConfig
    vocabulary: Vocabulary
    frames: FrameCondition | None = None
    text: TextCondition | None = None
    guidance: float | None = None
    tokens: dict[str, Any] = Field(default_factory=dict)


def token_table(vocabulary: Vocabulary) -> dict[str, Any]:
    """Ids by their meaning, JSON-able."""
    table = {
        "first_code": 0,
        "last_code": vocabulary.codebook_size - 1,
        "lengths": {str(k): vocabulary.first_length + i for i, k in enumerate(vocabulary.levels)},
        "any_class": vocabulary.null,
        "end": end_token(vocabulary),
        "frames": vocabulary.frames,
        "separator": vocabulary.separator,
        "classes": {n: vocabulary.class_token(i) for i, n in enumerate(vocabulary.class_names)},
    }
    if vocabulary.num_text:
        table |= {"text": vocabulary.text, "first_piece": vocabulary.text + 1}
    return table


def end_token(vocabulary: Vocabulary) -> int:
    """Id of the token that other engines take for the end of a clip."""
    return vocabulary.null


def read_exported(directory: str | Path) -> Exported:
    """vocabulary.json of an exported model.

    Raises:
        FileNotFoundError: there is none.
        EvatokError: it is damaged, or of another format.
    """
    path = Path(directory) / VOCABULARY_FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing; `evatok export-llama` writes it beside the weights"
        )
    return read_record(Exported, path, "write it anew with `evatok export-llama`")


class GrammarLogitsProcessor:
    """Forbids every token that cannot come next; for `generate(logits_processor=[…])`.

    A prompt is a class token, the null token, a text or a frame condition (see `conditions`),
    padded on the left with the null token where a batch mixes them.
    """

    def __init__(self, vocabulary: Vocabulary, frames: FrameCondition | None = None) -> None:
        """Take the grammar of a model.

        Args:
            vocabulary: of the model.
            frames: of the model.
        """
        self.vocabulary, self.frames = vocabulary, frames
        self._kinds, self._counts = vocabulary.kinds, vocabulary.counts

    @classmethod
    def load(cls, directory: str | Path) -> GrammarLogitsProcessor:
        """The grammar of an exported model."""
        exported = read_exported(directory)
        return cls(exported.vocabulary, exported.frames)

    def due(self, input_ids: Tensor) -> Tensor:
        """(B,) int8, the kind of token that must follow (B, S) int64: CODE, LENGTH or DONE.

        Raises:
            EvatokError: a frame condition for a model without frame prediction.
        """
        if input_ids.device != self._kinds.device:
            self._kinds = self._kinds.to(input_ids.device)
            self._counts = self._counts.to(input_ids.device)
        has_frames = (input_ids == self.vocabulary.frames).any(1)
        blocks = torch.full_like(input_ids[:, 0], self.vocabulary.num_blocks)
        if self.frames is not None:
            blocks = blocks - has_frames.long() * self.frames.kept_blocks
        elif bool(has_frames.any()):
            raise EvatokError("a frame condition, but the model was not trained to predict frames")
        # A frame condition holds lengths and codes too: those count from the separator on.
        is_after = (input_ids == self.vocabulary.separator).cumsum(1) > 0
        is_own = is_after | ~has_frames[:, None]  # (B, S)
        kinds = self._kinds[input_ids]
        lengths = ((kinds == LENGTH) & is_own).sum(1)
        codes = ((kinds == CODE) & is_own).sum(1)
        announced = (self._counts[input_ids] * is_own).sum(1)
        after_block = torch.where(lengths < blocks, LENGTH, DONE)
        return torch.where(codes < announced, CODE, after_block).to(torch.int8)

    def allowed(self, input_ids: Tensor) -> Tensor:
        """(B, V) bool, what may follow (B, S) int64; after a whole clip only the end token."""
        due = self.due(input_ids)[:, None]  # (B, 1)
        allowed = self._kinds == due
        end = torch.arange(self.vocabulary.size, device=due.device) == end_token(self.vocabulary)
        return allowed | ((due == DONE) & end)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) after tokens (B, S) int64, −∞ where the grammar forbids.

        Raises:
            EvatokError: scores of another vocabulary.
        """
        if scores.shape[-1] != self.vocabulary.size:
            raise EvatokError(
                f"scores of {scores.shape[-1]} tokens; the vocabulary has {self.vocabulary.size}"
            )
        return scores.masked_fill(~self.allowed(input_ids), -torch.inf)
