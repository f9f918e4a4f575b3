"""Requests to the sampling engine: conditions, seeds, and the choice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from evatok.core.config import Config
from evatok.core.errors import EvatokError
from generator.budget import BudgetConfig
from generator.conditions import (
    FrameCondition,
    TextCondition,
    class_prompt,
    frames_prompt,
    text_prompt,
)
from generator.grammar import Vocabulary
from tokenizer.tokens import Tokens


class SamplingConfig(Config):
    """Choice of tokens.

    Attributes:
        guidance: scale s of u + s (c − u), c and u the logits with and without the condition
            (paper: 2.5 for GPT-B, 1.75 for larger ones); 1 = off, which halves the work.
        temperature: logits are divided by it; 0 = always the most probable token.
        top_k: only the k most probable tokens; 0 = all.
        top_p: of what top_k leaves, the most probable tokens that together reach this; 1 = all.
        guidance_schedule: scale at block b of T: 1 + (s − 1) w, t = b / (T − 1); constant: w = 1,
            linear: w = t, cosine: w = (1 − cos πt) / 2.
        budget: how many tokens blocks may take.
    """

    guidance: float = Field(default=1.0, ge=0, le=10_000)
    temperature: float = Field(default=1.0, ge=0, le=10_000)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    budget: BudgetConfig = BudgetConfig()


@dataclass(frozen=True)
class Request:
    """One clip to generate.

    Attributes:
        prompt: (P,) int64, the condition, see `conditions`.
        num_blocks: blocks to generate.
        seed: of this request's own random numbers.
        settings: how tokens are chosen.
        given: ids (k,) of the blocks that the finished clip begins with.
        null_prompt: (P,) int64, the prompt without its condition; needed for guidance.
    """

    prompt: Tensor
    num_blocks: int
    seed: int
    settings: SamplingConfig
    given: tuple[Tensor, ...] = ()
    null_prompt: Tensor | None = None

    def __post_init__(self) -> None:
        if self.settings.guidance != 1 and self.null_prompt is None:
            raise EvatokError("guidance needs a null condition, which given frames do not have")

    @property
    def given_tokens(self) -> int:
        """Codes of the given blocks."""
        return sum(map(len, self.given))

    @property
    def is_guided(self) -> bool:
        """Whether it takes two rows."""
        return self.settings.guidance != 1


def class_requests(
    vocabulary: Vocabulary,
    labels: Sequence[int | None],
    seeds: Sequence[int],
    settings: SamplingConfig,
) -> list[Request]:
    """Requests for whole clips of classes; None = of any class, which takes no guidance."""
    null, off = class_prompt(vocabulary, None), settings.model_copy(update={"guidance": 1.0})
    return [
        Request(
            class_prompt(vocabulary, label),
            vocabulary.num_blocks,
            seed,
            off if label is None else settings,
            null_prompt=null,
        )
        for label, seed in zip(labels, seeds, strict=True)
    ]


def frame_requests(
    vocabulary: Vocabulary,
    frames: FrameCondition,
    condition: Tokens,
    seeds: Sequence[int],
    settings: SamplingConfig,
) -> list[Request]:
    """Requests for the rest of clips.

    Args:
        vocabulary: of the model.
        frames: of the model.
        condition: tokens of `frames.pad(clips)`, assigned `frames.prefix`.
        seeds: one a clip.
        settings: without guidance.
    """
    frames.check(vocabulary)
    if any(row != list(frames.prefix) for row in condition.assignment.tolist()):
        raise EvatokError(f"the condition is not assigned {frames.prefix}")
    return [
        Request(
            frames_prompt(vocabulary, blocks),
            vocabulary.num_blocks - frames.kept_blocks,
            seed,
            settings,
            given=tuple(blocks[: frames.kept_blocks]),
        )
        for blocks, seed in zip(condition.blocks(), seeds, strict=True)
    ]


def text_requests(
    vocabulary: Vocabulary,
    text: TextCondition,
    texts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    settings: SamplingConfig,
) -> list[Request]:
    """Requests for whole clips of texts.

    Args:
        vocabulary: of the model.
        text: of the model.
        texts: pieces of each, see `generator.text`.
        seeds: one a clip.
        settings: guidance is against the null condition, any clip.

    Raises:
        EvatokError: a text of no pieces or of too many.
    """
    for pieces in texts:
        if not 0 < len(pieces) <= text.max_pieces:
            raise EvatokError(
                f"a text of {len(pieces)} pieces; the model takes 1 to {text.max_pieces}"
            )
    null = class_prompt(vocabulary, None)
    return [
        Request(
            text_prompt(vocabulary, pieces),
            vocabulary.num_blocks,
            seed,
            settings,
            null_prompt=null,
        )
        for pieces, seed in zip(texts, seeds, strict=True)
    ]
