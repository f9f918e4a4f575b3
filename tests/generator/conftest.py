"""A tiny vocabulary, a random model of it, and a tokenizer that stands in for the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from generator.conditions import FrameCondition, TextCondition
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from tokenizer.tokens import Tokens


class BrightnessTokenizer:
    """Block-causal like the real one: code j of block t says how bright frames ≤ t are, plus j."""

    def __init__(self, vocabulary: Vocabulary, frames_per_block: int = 4) -> None:
        self.vocabulary, self.frames_per_block = vocabulary, frames_per_block

    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        codes = self.vocabulary.codebook_size
        blocks = []
        for clip, counts in zip(clips, assignment.tolist(), strict=True):
            assert clip.shape[1] == len(counts) * self.frames_per_block
            row = []
            for t, count in enumerate(counts):
                seen = clip[:, : (t + 1) * self.frames_per_block]
                level = int((seen * 1000).abs().sum())
                row.append((level + torch.arange(count)) % codes)
            blocks.append(row)
        return Tokens.from_blocks(blocks)

    def decode(self, tokens: Tokens) -> Tensor:
        values = torch.tensor([[float(b.float().mean()) for b in row] for row in tokens.blocks()])
        values = values / self.vocabulary.codebook_size * 2 - 1  # (B, T)
        frames = values.repeat_interleave(self.frames_per_block, 1)
        return frames[:, None, :, None, None].expand(-1, 3, -1, 8, 8).contiguous()


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(
        codebook_size=12, levels=(1, 2, 5), num_blocks=4, class_names=("cat", "dog", "bee")
    )


@pytest.fixture
def frames() -> FrameCondition:
    return FrameCondition(num_frames=5, prefix=(5, 2))


@pytest.fixture
def tokenizer(vocabulary: Vocabulary) -> BrightnessTokenizer:
    return BrightnessTokenizer(vocabulary)


@pytest.fixture
def make_gpt() -> Callable[..., GPT]:
    """A small model whose head is not zero and whose weights are large enough to matter."""

    def make(
        vocabulary: Vocabulary,
        frames: FrameCondition | None = None,
        text: TextCondition | None = None,
        **size: Any,
    ) -> GPT:
        size = {"width": 32, "layers": 2, "heads": 2, "hidden": 48} | size
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT(GPTConfig(**size), vocabulary, frames, text)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return make


@pytest.fixture
def gpt(make_gpt: Callable[..., GPT], vocabulary: Vocabulary, frames: FrameCondition) -> GPT:
    return make_gpt(vocabulary, frames)
