"""The generator's training: next-token cross-entropy on packed sequences.

One model learns every condition: each sequence begins with a class, a text or given frames.

Shape letters: L packed tokens, P targets, B clips, F frames, H W pixels, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from evatok.core.config import Config, Count, Frames, Level, TrainConfig
from evatok.core.errors import EvatokError
from generator.conditions import Condition, FrameCondition, TextCondition
from generator.data.packing import PackedBatch, Packer, pack
from generator.data.token_set import TokenSet
from generator.gpt import GPT, GPTConfig
from generator.grammar import LENGTH, Vocabulary
from generator.inference.engine import sample
from generator.inference.requests import Request, SamplingConfig, class_requests
from generator.start import start_from
from tokenizer.model import VideoTokenizer
from tokenizer.tokens import Tokens
from training.stage import StageBase, Validation
from video.clips import to_frames

VALIDATION_SEQUENCES = 32  # at once


class ExpectedTokens(Config):
    """Contents of the shards, for sizes and costs before there are any.

    Attributes:
        codebook_size: K.
        levels: permitted counts of a block.
        num_blocks: T.
        num_classes: class tokens.
        mean_length: tokens of a sequence on average, its condition included, for `evatok plan`.
        frames: how frame conditions are made.
        num_text: pieces of captions.
        text: how texts become conditions; None without.
    """

    codebook_size: Count
    levels: tuple[Level, ...]
    num_blocks: Frames
    num_classes: int = Field(ge=0, le=2**20)
    mean_length: float = Field(gt=0)
    frames: FrameCondition | None = None
    num_text: int = Field(default=0, ge=0)
    text: TextCondition | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """With numbers for the names of classes."""
        return Vocabulary(
            codebook_size=self.codebook_size,
            levels=self.levels,
            num_blocks=self.num_blocks,
            class_names=tuple(str(number) for number in range(self.num_classes)),
            num_text=self.num_text,
        )

    def check(self, tokens: TokenSet) -> None:
        """Refuse shards of anything else."""
        wanted, found = self.vocabulary, tokens.vocabulary
        pairs = [(name, getattr(wanted, name), getattr(found, name))
                 for name in ("codebook_size", "levels", "num_blocks", "num_text")]  # fmt: skip
        pairs += [("num_classes", self.num_classes, len(found.class_names))]
        pairs += [("frames", self.frames, tokens.frames), ("text", self.text, tokens.text)]
        for name, expected, is_ in pairs:
            if expected != is_:
                raise EvatokError(f"expect.{name} is {expected}, but the tokens have {is_}")


class GeneratorConfig(Config):
    """Settings of the stage.

    Attributes:
        tokens: folder with `train` and `test`, written by `generator.data.shards`.
        tokenizer: folder of the tokenizer that wrote them; decodes the samples of a validation.
            None: no pictures.
        model: size of the GPT.
        start_from: folder of a trained generator of this size to go on from; see `generator.start`.
        token_budget: most tokens of a step. None: `train.batch_size` times the mean length, so that
            a step has about so many clips.
        frame_share: share of frame-conditional sequences.
        text_share: share of text-conditional sequences; the others are class-conditional.
        label_dropout: share of the last two whose class or text becomes null.
        validation_clips: held-out clips of a validation, the first ones of the shards.
        pictures: samples in each picture.
        sampling: how they are drawn; its guidance goes with the exported model, as the default of
            `evatok sample` and `evatok evaluate`.
        expect: what the shards must hold; None: whatever they hold.
    """

    stage: Literal["generator"] = "generator"
    tokens: Path
    tokenizer: Path | None = None
    model: GPTConfig
    start_from: Path | None = None
    train: TrainConfig
    token_budget: int | None = Field(default=None, ge=1)
    frame_share: float = Field(default=0.0, ge=0, le=1)
    text_share: float = Field(default=0.0, ge=0, le=1)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    validation_clips: int = Field(default=256, ge=1)
    pictures: int = Field(default=8, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    expect: ExpectedTokens | None = None


class GeneratorStage(StageBase):
    """Trains a GPT on token shards."""

    def __init__(self, config: GeneratorConfig) -> None:
        """Open the shards and make the model.

        Raises:
            FileNotFoundError: no shards, no tokenizer, or no generator to start from.
            EvatokError: shards that do not fit each other, a budget under the longest sequence, or
                a generator of another size to start from.
        """
        self.config = config
        self.tokens = TokenSet(config.tokens / "train")
        self.held_out = TokenSet(config.tokens / "test")
        for name in ("vocabulary", "frames", "text"):
            if getattr(self.tokens, name) != getattr(self.held_out, name):
                raise EvatokError(f"{config.tokens}: train and test do not have the same {name}")
        if config.expect is not None:
            config.expect.check(self.tokens)
        mean = float(self.tokens.lengths().mean()) if config.frame_share < 1 else 0.0
        if config.frame_share > 0:
            other = float(self.tokens.lengths(Condition.FRAMES).mean())
            mean += config.frame_share * (other - mean)
        if config.text_share > 0:
            lengths = self.tokens.lengths(Condition.TEXT) - self.tokens.lengths()
            mean += config.text_share * (1 - config.label_dropout) * float(lengths.mean())
        self.packer = Packer(
            self.tokens,
            config.token_budget or round(config.train.batch_size * mean),
            config.train.seed,
            config.frame_share,
            config.label_dropout,
            config.text_share,
        )
        self.tokenizer = None
        if config.tokenizer is not None:
            self.tokenizer = VideoTokenizer.from_pretrained(config.tokenizer).eval()
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            model = GPT(
                config.model,
                self.tokens.vocabulary,
                self.tokens.frames,
                self.tokens.text,
                config.sampling.guidance,
            )
        if config.start_from is not None:
            start_from(model, GPT.from_pretrained(config.start_from))
        self.model: nn.Module = model

    def batch(self, step: int, rank: int, world: int) -> PackedBatch:
        """One rank's sequences of a step."""
        return self.packer.batch(step, rank, world)

    def split(self, batch: PackedBatch, parts: int) -> list[PackedBatch]:
        """Cut between sequences."""
        return batch.split(parts)

    def weight(self, batch: PackedBatch) -> float:
        """Targets, so that every token of a step counts alike."""
        return float(len(batch.targets))

    def loss(
        self, model: nn.Module, batch: PackedBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of the targets, in nats; 0 without any."""
        logits = model(batch.ids, batch.cu_seqlens, batch.target_positions).float()  # (P, V)
        has_any = len(batch.targets) > 0  # the mean of nothing is not a number
        loss = F.cross_entropy(logits, batch.targets) if has_any else logits.sum()
        return loss, {"cross_entropy": loss.detach()}

    @torch.no_grad()
    def validate(self, model: nn.Module, step: int) -> Validation:
        """Cross-entropy on held-out clips by condition and kind of token; some samples."""
        assert isinstance(model, GPT)
        scalars = self._held_out_loss(model, Condition.CLASS) if self.held_out.classes else {}
        if self.config.frame_share > 0:
            scalars |= self._held_out_loss(model, Condition.FRAMES)
        if self.config.text_share > 0:
            scalars |= self._held_out_loss(model, Condition.TEXT)
        images = {}
        if self.tokenizer is not None:
            if self.held_out.classes:
                images["samples"] = self._class_picture(model)
            if self.config.frame_share > 0:
                images["predictions"] = self._frames_picture(model)
        return Validation(scalars, images)

    def _held_out_loss(self, model: GPT, condition: Condition) -> dict[str, float]:
        count = min(self.config.validation_clips, len(self.held_out))
        kinds = self.held_out.vocabulary.kinds
        losses, is_length = [], []
        for first in range(0, count, VALIDATION_SEQUENCES):
            rows = range(first, min(count, first + VALIDATION_SEQUENCES))
            sequences = [self.held_out.sequence(row, condition) for row in rows]
            ends = [self.held_out.condition_length(row, condition) for row in rows]
            batch = pack(sequences, ends, [condition] * len(sequences))
            is_length.append(kinds[batch.targets] == LENGTH)
            batch = batch.to(model.head.weight.device)
            logits = model(batch.ids, batch.cu_seqlens, batch.target_positions).float()
            losses.append(F.cross_entropy(logits, batch.targets, reduction="none").cpu())
        loss, lengths = torch.cat(losses), torch.cat(is_length)
        name = condition.name.lower()
        return {
            f"cross_entropy_{name}": float(loss.mean()),
            f"cross_entropy_{name}_codes": float(loss[~lengths].mean()),
            f"cross_entropy_{name}_lengths": float(loss[lengths].mean()),
        }

    def _class_picture(self, model: GPT) -> np.ndarray:
        """Samples of the first classes, a clip a row."""
        names = self.tokens.vocabulary.class_names
        count = self.config.pictures
        labels = [i % len(names) if names else None for i in range(count)]
        requests = class_requests(model.vocabulary, labels, range(count), self.config.sampling)
        return _strips(self._decode(sample(model, requests), model.device))

    def _frames_picture(self, model: GPT) -> np.ndarray:
        """Predictions for the first held-out clips, each under the clip as its own tokens say."""
        frames, vocabulary = self.held_out.frames, model.vocabulary
        assert frames is not None
        settings = self.config.sampling.model_copy(update={"guidance": 1.0})
        requests, truth = [], []
        end = frames.num_tokens
        for row in range(min(self.config.pictures, len(self.held_out))):
            sequence = torch.from_numpy(
                self.held_out.sequence(row, Condition.FRAMES).astype(np.int64)
            )
            given = vocabulary.decode_blocks(sequence[1 : end - 1])[: frames.kept_blocks]
            rest = vocabulary.decode_blocks(sequence[end:])
            requests.append(Request(sequence[:end], len(rest), row, settings, tuple(given)))
            truth.append([*given, *rest])
        both = (Tokens.from_blocks(truth), sample(model, requests))
        clips = [self._decode(tokens, model.device) for tokens in both]
        return _strips(torch.stack(clips, 1).flatten(0, 1))

    def _decode(self, tokens: Tokens, device: torch.device) -> Tensor:
        """Pixels on the CPU, decoded on a device, to which the tokenizer moves."""
        assert self.tokenizer is not None
        return self.tokenizer.to(device).decode(tokens.to(device)).clamp(-1, 1).cpu()


def _strips(clips: Tensor, columns: int = 8) -> np.ndarray:
    """Clips (B, 3, F, H, W) in [−1, 1] as a picture (B · H, columns · W, 3) uint8, a clip a row."""
    chosen = torch.linspace(0, clips.shape[2] - 1, min(columns, clips.shape[2])).round().long()
    rows = [torch.cat(list(to_frames(clip)[chosen]), 1) for clip in clips]
    return torch.cat(rows).numpy()
