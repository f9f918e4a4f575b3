"""The language that the GPT speaks: its vocabulary, and which token may come next.

A clip is `[len k₁] code×k₁ … [len k_T] code×k_T` (method section 6): a length token before each
block says how many codes follow. At sampling a mask keeps the grammar, so that exactly T blocks
come out whatever the weights are.

Shape letters: B batch, T blocks, K codebook size, V vocabulary, m levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from evatok.core.config import Config, Count, Frames, Level
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels

CODE, LENGTH, NEVER = 0, 1, 2  # kinds of token, for sampling
DONE = 3  # what is due in a finished row: no token is of this kind


class Vocabulary(Config):
    """Every token of the GPT: K codes, m lengths, three specials, the classes, then the text.

    Attributes:
        codebook_size: K.
        levels: the m permitted counts of codes in a block.
        num_blocks: T, blocks of a whole clip.
        class_names: one token each; empty for a model without classes.
        num_text: pieces of captions, behind the token that opens a text condition; 0 = no text.
    """

    codebook_size: Count
    levels: tuple[Level, ...]
    num_blocks: Frames
    class_names: tuple[str, ...] = ()
    num_text: int = Field(default=0, ge=0, le=2**24)

    @model_validator(mode="after")
    def _check(self) -> Self:
        Levels(self.levels)
        return self

    @cached_property
    def _levels(self) -> Levels:
        return Levels(self.levels)

    @property
    def first_length(self) -> int:
        """Id of the token of the smallest level."""
        return self.codebook_size

    @property
    def null(self) -> int:
        """Id of the condition "any class", for classifier-free guidance."""
        return self.codebook_size + len(self.levels)

    @property
    def frames(self) -> int:
        """Id of the token that opens a frame condition."""
        return self.null + 1

    @property
    def separator(self) -> int:
        """Id of the token between a frame or text condition and what is generated."""
        return self.null + 2

    @property
    def size(self) -> int:
        """V."""
        return self.text + (1 + self.num_text if self.num_text else 0)

    @property
    def text(self) -> int:
        """Id of the token that opens a text condition; its pieces follow it. Unused without."""
        return self.null + 3 + len(self.class_names)

    def class_token(self, label: int) -> int:
        """Id of a class.

        Raises:
            EvatokError: no such class.
        """
        if not 0 <= label < len(self.class_names):
            raise EvatokError(f"class {label} is not one of 0 to {len(self.class_names) - 1}")
        return self.null + 3 + label

    def text_tokens(self, ids: Tensor) -> Tensor:
        """Tokens (N,) int64 of pieces (N,) int64 in [0, `num_text`).

        Raises:
            EvatokError: an id that is no piece.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_text:
            raise EvatokError(f"ids of text are not all in [0, {self.num_text})")
        return ids + self.text + 1

    @cached_property
    def counts(self) -> Tensor:
        """(V,) int64, how many codes each token announces: a length token its level, others 0."""
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.first_length : self.null] = self._levels.tensor
        return counts

    @cached_property
    def kinds(self) -> Tensor:
        """(V,) int8, CODE, LENGTH, or NEVER (a condition, which no sample contains)."""
        kinds = torch.full((self.size,), NEVER, dtype=torch.int8)
        kinds[: self.codebook_size] = CODE
        kinds[self.first_length : self.null] = LENGTH
        return kinds

    def encode_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """A clip as the GPT reads it.

        Args:
            blocks: ids (k,) int64 in [0, K) of each block, k one of the levels.

        Returns:
            (Σ (1 + k),) int64, each block behind its length token.

        Raises:
            EvatokError: a count that is no level, or an id that is no code.
        """
        counts = torch.tensor([len(block) for block in blocks], dtype=torch.int64)
        ranks = self._levels.ranks(counts).tolist()
        parts = []
        for rank, block in zip(ranks, blocks, strict=True):
            if int(block.min()) < 0 or int(block.max()) >= self.codebook_size:
                raise EvatokError(f"ids are not all codes in [0, {self.codebook_size})")
            parts += [block.new_tensor([self.first_length + rank]), block]
        return torch.cat(parts)

    def decode_blocks(self, ids: Tensor) -> list[Tensor]:
        """The inverse of `encode_blocks`.

        Args:
            ids: (N,) int64, length tokens and codes.

        Returns:
            The ids (k,) of each block.

        Raises:
            EvatokError: the ids break the grammar.
        """
        kinds, counts, blocks, at = self.kinds[ids.cpu()].tolist(), self.counts, [], 0
        while at < len(ids):
            if kinds[at] != LENGTH:
                raise EvatokError(f"token {int(ids[at])} at place {at} is not a length token")
            block = ids[at + 1 : at + 1 + int(counts[ids[at]])]
            if len(block) < int(counts[ids[at]]) or any(
                kind != CODE for kind in kinds[at + 1 : at + 1 + len(block)]
            ):
                raise EvatokError(f"the block at place {at} does not have the codes it announces")
            blocks.append(block)
            at += 1 + len(block)
        return blocks

    def longest(self, num_blocks: int) -> int:
        """Tokens of so many blocks at the highest level, length tokens included."""
        return num_blocks * (1 + self.levels[-1])


class Grammar:
    """Permitted next tokens of each of B rows: a state machine, vectorised.

    Attributes:
        blocks_left: (B,) int64, length tokens still to come.
        codes_left: (B,) int64, codes still to come in the present block.
    """

    def __init__(self, vocabulary: Vocabulary, num_blocks: Tensor) -> None:
        """Start B rows.

        Args:
            vocabulary: its kinds and counts move to the device of `num_blocks`.
            num_blocks: (B,) int64, blocks to come in each row.
        """
        self._kinds = vocabulary.kinds.to(num_blocks.device)
        self._counts = vocabulary.counts.to(num_blocks.device)
        self._blocks, self.blocks_left = num_blocks.clone(), num_blocks.clone()
        self.codes_left = torch.zeros_like(num_blocks)

    def finished(self) -> Tensor:
        """(B,) bool, rows in which every block is complete."""
        return (self.blocks_left + self.codes_left) == 0

    def block(self) -> Tensor:
        """(B,) int64, number from 0 of the block that the next token belongs to."""
        return self._blocks - self.blocks_left - (self.codes_left > 0).to(torch.int64)

    def due(self) -> Tensor:
        """(B,) int8, the kind of token that must come: CODE, LENGTH or DONE."""
        after_block = torch.where(self.blocks_left > 0, LENGTH, DONE)
        return torch.where(self.codes_left > 0, CODE, after_block).to(torch.int8)

    def allowed(self) -> Tensor:
        """(B, V) bool: codes inside a block, length tokens before one, nothing when finished."""
        return self._kinds == self.due()[:, None]

    def advance(self, tokens: Tensor) -> None:
        """Take the tokens (B,) int64 that were chosen, each allowed; finished rows stay so."""
        announced = self._counts[tokens]
        is_length = (announced > 0) & (self.codes_left == 0)
        self.blocks_left = self.blocks_left - is_length.to(torch.int64)
        self.codes_left = torch.where(is_length, announced, (self.codes_left - 1).clamp_(min=0))

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (N,) int64, in this order."""
        self.blocks_left, self.codes_left = self.blocks_left[rows], self.codes_left[rows]
        self._blocks = self._blocks[rows]

    def extend(self, num_blocks: Tensor) -> None:
        """Add rows with so many blocks to come, (N,) int64."""
        self.blocks_left = torch.cat([self.blocks_left, num_blocks])
        self._blocks = torch.cat([self._blocks, num_blocks])
        self.codes_left = torch.cat([self.codes_left, torch.zeros_like(num_blocks)])
