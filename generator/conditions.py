"""Conditions of a sample: a class, a text, or the first frames of a clip.

A class is one token before the clip; in training it is now and then replaced by the null token, so
that classifier-free guidance has something to compare with. Given frames are padded with their last
one to whole blocks, encoded at fixed levels, and put before a separator (method section 6):

    [frames] [len a] code×a [len b] code×b [sep] [len k] code×k …

With 5 frames the second block is only partly given: its codes describe frame 5 and copies of it.
By default the model therefore writes that block anew (`repredict_partial`); the paper's text keeps
it. The condition is encoded from the padded frames in training as in sampling: nothing leaks.

A text is its pieces between a token that opens it and the separator; its opposite in guidance is
the null token, as a class's is:

    [text] piece×n [sep] [len k] code×k …

Shape letters: B batch, F frames, T blocks, H W pixels, L packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from evatok.core.config import Config, Frames, Level
from evatok.core.errors import EvatokError
from generator.grammar import Vocabulary


class Condition(IntEnum):
    """Kind of a sequence's condition. The null token is of the kind CLASS: any class."""

    CLASS = 0
    FRAMES = 1
    TEXT = 2


class PrefixAssigner(Protocol):
    """Chooses how many tokens each block gets; `Router.assign` is one."""

    def __call__(self, clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
        """Assign clips (B, 3, F, H, W) in [−1, 1] to (B, T) int64, beginning with the prefix."""
        ...


def uniform(tokens: int, num_blocks: int) -> PrefixAssigner:
    """The assigner that gives every block of every clip the same number of tokens."""

    def assign(clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
        counts = [*prefix, *[tokens] * (num_blocks - len(prefix))]
        return torch.tensor([counts], device=clips.device).repeat(len(clips), 1)

    return assign


class FrameCondition(Config):
    """Encoding of given frames as a condition.

    Attributes:
        num_frames: frames that are given (paper: 5).
        frames_per_block: of the tokenizer.
        prefix: the level of each block that holds given frames (paper: 512, 128).
        repredict_partial: generate the block that is only partly given, rather than keep it.
    """

    num_frames: Frames = 5
    frames_per_block: Frames = 4
    prefix: tuple[Level, ...] = (512, 128)
    repredict_partial: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = -(-self.num_frames // self.frames_per_block)
        if len(self.prefix) != blocks:
            raise EvatokError(
                f"{self.num_frames} given frames fill {blocks} blocks of {self.frames_per_block}; "
                f"prefix {self.prefix} must have one level for each"
            )
        return self

    @property
    def kept_blocks(self) -> int:
        """Blocks of the condition that the finished clip begins with."""
        whole = self.num_frames // self.frames_per_block
        return whole if self.repredict_partial else len(self.prefix)

    @property
    def num_tokens(self) -> int:
        """Length of the condition, its first token and the separator included."""
        return 2 + sum(1 + k for k in self.prefix)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse levels that do not exist and conditions that leave nothing to generate."""
        wrong = sorted(set(self.prefix) - set(vocabulary.levels))
        if wrong:
            raise EvatokError(f"prefix: {wrong} are not levels; choose from {vocabulary.levels}")
        if self.kept_blocks >= vocabulary.num_blocks:
            raise EvatokError(
                f"{self.num_frames} given frames leave none of the {vocabulary.num_blocks} blocks"
            )

    def pad(self, clips: Tensor) -> Tensor:
        """The frames that the condition may see, padded to whole blocks with the last of them.

        Args:
            clips: (B, 3, F, H, W), F at least `num_frames`; later frames are ignored.

        Returns:
            (B, 3, F', H, W), F' = `frames_per_block` × blocks of the prefix.
        """
        if clips.shape[2] < self.num_frames:
            raise EvatokError(f"{clips.shape[2]} frames given; the condition is {self.num_frames}")
        given = clips[:, :, : self.num_frames]
        missing = len(self.prefix) * self.frames_per_block - self.num_frames
        return torch.cat([given, given[:, :, -1:].repeat(1, 1, missing, 1, 1)], 2)


class TextCondition(Config):
    """Encoding of a text as a condition.

    Attributes:
        max_pieces: of the longest text.
        digest: of the model that cuts texts into pieces, see `generator.text`.
    """

    max_pieces: int = Field(default=32, ge=1)
    digest: str

    @property
    def num_tokens(self) -> int:
        """Length of the longest condition, its first token and the separator included."""
        return 2 + self.max_pieces


def check_text(vocabulary: Vocabulary, text: TextCondition | None) -> None:
    """Refuse pieces without a condition that uses them, and the reverse."""
    if (text is None) != (vocabulary.num_text == 0):
        raise EvatokError(
            f"a vocabulary with {vocabulary.num_text} pieces of text "
            f"and {'no' if text is None else 'a'} text condition do not fit each other"
        )


def class_prompt(vocabulary: Vocabulary, label: int | None) -> Tensor:
    """The condition (1,) int64 of a class, or of any class if None."""
    return torch.tensor([vocabulary.null if label is None else vocabulary.class_token(label)])


def frames_prompt(vocabulary: Vocabulary, blocks: Sequence[Tensor]) -> Tensor:
    """The condition of given frames.

    Args:
        vocabulary: of the model.
        blocks: ids (k,) int64 of each block that holds given frames.

    Returns:
        (N,) int64: frames token, the blocks behind their length tokens, separator.
    """
    inner = vocabulary.encode_blocks(blocks)
    first, last = inner.new_tensor([vocabulary.frames]), inner.new_tensor([vocabulary.separator])
    return torch.cat([first, inner, last])


def text_prompt(vocabulary: Vocabulary, pieces: Sequence[int]) -> Tensor:
    """The condition (2 + n,) int64 of a text of n pieces, each in [0, `num_text`).

    Raises:
        EvatokError: a piece that the vocabulary does not have.
    """
    inner = vocabulary.text_tokens(torch.tensor(pieces, dtype=torch.int64))
    first, last = inner.new_tensor([vocabulary.text]), inner.new_tensor([vocabulary.separator])
    return torch.cat([first, inner, last])


def longest_sequence(
    vocabulary: Vocabulary, frames: FrameCondition | None, text: TextCondition | None = None
) -> int:
    """Tokens of the longest condition and clip that a model has to hold."""
    longest = vocabulary.longest(vocabulary.num_blocks) + (1 if text is None else text.num_tokens)
    if frames is not None:
        rest = vocabulary.num_blocks - frames.kept_blocks
        longest = max(longest, frames.num_tokens + vocabulary.longest(rest))
    return longest
