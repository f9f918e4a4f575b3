"""Stage 3: the router learns the best assignment from the table of a search (method section 5).

Shape letters: B batch, N clips, F frames, H W pixels, M = m^T candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from evatok.core.compute.devices import device_of
from evatok.core.config import Config, TrainConfig
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels
from tokenizer.router import Router, RouterConfig
from tokenizer.search.reward import (
    Quality,
    best_uniform,
    percentile,
    percentiles,
    reward_stats,
    rewards,
)
from tokenizer.search.table import check_clips, read_table
from tokenizer.training.initialization import initialise_router, initialise_router_from
from training.loop import StageBase, Validation
from video.dataset import ClipSampler, DataConfig, Window

# The logit of a candidate that was not searched: its share is 0, and 0 times its logarithm too.
NEVER = -1e4


class RouterTraining(Config):
    """Stage 3: learn the best assignment from the table of a search."""

    stage: Literal["router"] = "router"
    data: DataConfig
    model: RouterConfig
    train: TrainConfig
    table: Path  # folder of the search over training clips
    search_batch: int = Field(ge=1)  # batch size and seed of that search: they name its clips
    search_seed: int = 0
    held_out_table: Path | None = None  # folder of the search over held-out clips
    quality: Quality = "psnr"  # of the reward; a perceptual one must be in the table
    # With model.preference: what the router takes when none is given, and the range it learns.
    w_q: float = Field(default=1.2, ge=0, le=2)
    w_q_range: tuple[float, float] = (0.4, 2.0)
    # 0 = the best candidate is the class (the paper); above, classes are weighted by
    # softmax(reward / temperature), which says more with few clips.
    target_temperature: float = Field(default=0.0, ge=0)
    # Start the patch layer from principal components.
    start_from_data: bool = False
    # Folder of a trained router to start from instead; `preference` may differ.
    start_from: Path | None = None

    @model_validator(mode="after")
    def _one_home(self) -> RouterTraining:
        fields = RouterConfig.model_fields
        written = ("w_q", "standard", "quality")
        if any(getattr(self.model, name) != fields[name].default for name in written):
            raise EvatokError(
                "model.w_q, model.standard and model.quality are written by the training: set w_q "
                "and quality"
            )
        own = type(self).model_fields
        if not self.model.preference and self.w_q_range != own["w_q_range"].default:
            raise EvatokError("w_q_range is for a router with model.preference")
        if self.start_from is not None and self.start_from_data:
            raise EvatokError("give start_from or start_from_data, one of the two")
        return self


@dataclass(frozen=True)
class HeldOut:
    """Searched clips that a router is judged on.

    Attributes:
        sampler: reads them.
        windows: where they are.
        quality: (N, M) of every candidate, higher is better.
    """

    sampler: ClipSampler
    windows: Sequence[Window]
    quality: Tensor

    def parts(self, size: int = 64) -> Iterator[Tensor]:
        """The clips, so many at a time (B, 3, F, H, W)."""
        for first in range(0, len(self.windows), size):
            yield self.sampler.load(self.windows[first : first + size])[0]


class RouterStage(StageBase):
    """Stage 3."""

    START_CLIPS = 256  # whose patches make the principal components

    def __init__(self, config: RouterTraining) -> None:
        self.config = config
        levels, blocks = (
            Levels(config.model.levels),
            config.model.num_frames // config.model.patch[0],
        )
        self.lengths = levels.candidates(blocks).sum(1)
        table = read_table(config.table)
        self.quality = table.quality(config.quality)
        if self.quality.shape[1] != len(self.lengths):
            raise EvatokError(
                f"{config.table} has {self.quality.shape[1]} candidates a clip; a router of "
                f"{blocks} blocks and levels {levels.values} has {len(self.lengths)}"
            )
        table.check_levels(levels.values, config.table)
        self.standard = reward_stats(self.quality, self.lengths)
        torch.manual_seed(config.train.seed)
        router = Router(
            config.model.model_copy(
                update={"w_q": config.w_q, "standard": self.standard, "quality": config.quality}
            )
        )
        self.model: nn.Module = router
        self.sampler = ClipSampler(config.data, "train")
        self.samples = [number * config.search_batch + row for number, row in table.batch_rows]
        drawn = [self.sampler.window(sample, config.search_seed) for sample in self.samples]
        check_clips(config.table, table.names, [self.sampler.name(window) for window in drawn])
        if config.start_from is not None:
            initialise_router_from(router, Router.from_pretrained(config.start_from))
        if config.start_from_data:
            first = range(min(self.START_CLIPS, len(self.samples)))
            initialise_router(router, self.clips(first))
        self.held_out: HeldOut | None = None
        if config.held_out_table is not None:
            held = read_table(config.held_out_table, whole=True)
            held.check_levels(levels.values, config.held_out_table)
            sampler = ClipSampler(config.data, "test")
            wanted = sampler.eval_clips(len(held.batch_rows))  # the same draw as that search
            rows = [number * config.search_batch + row for number, row in held.batch_rows]
            windows = [wanted[row % len(wanted)] for row in rows]  # beyond: the names will differ
            check_clips(config.held_out_table, held.names, [sampler.name(w) for w in windows])
            self.held_out = HeldOut(sampler, windows, held.quality(config.quality))

    def clips(self, numbers: Sequence[int]) -> Tensor:
        """Searched clips (B, 3, F, H, W) float32 in [−1, 1] by their rows in the table.

        They are read when they are asked for: a table of 100 000 clips is 79 GB of frames.
        """
        samples = [self.samples[number] for number in numbers]
        return self.sampler.clips(samples, self.config.search_seed)

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, their rewards for every candidate, and the w_q of these rewards."""
        rows, config = self.config.train.batch_size, self.config
        generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + step)
        pick = torch.randint(len(self.samples), (rows,), generator=generator)
        mirrored = torch.rand(rows, generator=generator) < (0.5 if config.data.flip else 0)
        w_q = torch.full((rows,), config.w_q)
        if config.model.preference:
            low, high = config.w_q_range
            w_q = low + (high - low) * torch.rand(rows, generator=generator)
        pick, mirrored, w_q = pick[rank::world], mirrored[rank::world], w_q[rank::world]
        clips = self.clips(pick.tolist())
        # A clip and its mirror image are about equally hard, block by block.
        clips = torch.where(mirrored.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
        table = rewards(self.quality[pick], self.lengths, self.standard, w_q[:, None])
        return clips, table.float(), w_q

    def _logits(self, model: nn.Module, clips: Tensor, w_q: Tensor) -> Tensor:
        return (model(clips, w_q) if self.config.model.preference else model(clips)).float()

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy to the best candidate, or to the softened rewards.

        Of a clip that was searched for some candidates, it is that among these.
        """
        clips, table, w_q = batch
        missing = table.isnan()
        logits = self._logits(model, clips, w_q).masked_fill(missing, NEVER)
        searched = table.masked_fill(missing, -torch.inf)
        temperature = self.config.target_temperature
        target = (searched / temperature).softmax(-1) if temperature else searched.argmax(-1)
        loss = F.cross_entropy(logits, target)
        got = percentiles(table, logits.argmax(-1))
        return loss, {"cross_entropy": loss.detach(), "percentile": got}

    @torch.no_grad()
    def validate(self, model: nn.Module, step: int) -> Validation:
        """Percentile, top-1 and top-5 on held-out clips, beside the best uniform level.

        With `preference` also the percentile at other w_q in the range that was learned.
        """
        assert isinstance(model, Router)
        if self.held_out is None:
            return Validation(scalars={}, images={})
        scalars: dict[str, float] = {}
        low, high = self.config.w_q_range
        others = torch.linspace(low, high, 5).tolist() if self.config.model.preference else []
        wanted = [self.config.w_q, *others]
        parts: list[list[Tensor]] = [[] for _ in wanted]
        device = device_of(model)
        for clips in self.held_out.parts():
            clips = clips.to(device)
            for out, w_q in zip(parts, wanted, strict=True):
                at = torch.full((len(clips),), w_q, device=device)
                out.append(self._logits(model, clips, at).cpu())
        for out, w_q in zip(parts, wanted, strict=True):
            table = rewards(self.held_out.quality, self.lengths, self.standard, w_q).float()
            logits = torch.cat(out)
            if not scalars:
                scalars = router_scores(model, logits, table)
            else:
                scalars[f"percentile_{w_q:.1f}"] = percentile(table, logits.argmax(-1))
        return Validation(scalars=scalars, images={})


def router_scores(model: Router, logits: Tensor, table: Tensor) -> dict[str, float]:
    """Quality of a router's choices (method section 5, table 8).

    Args:
        model: for its levels.
        logits: (N, M).
        table: (N, M) rewards.
    """
    chosen = logits.argmax(-1)
    best = table.argmax(-1, keepdim=True)
    level, uniform = best_uniform(table, model.levels, model.num_blocks)
    lengths = model.levels.candidates(model.num_blocks).sum(1)
    five = logits.topk(min(5, logits.shape[1])).indices
    return {
        "percentile": percentile(table, chosen),
        "best_uniform_percentile": uniform,
        "best_uniform_level": float(level),
        "top1": float((logits.topk(1).indices == best).any(-1).float().mean() * 100),
        "top5": float((five == best).any(-1).float().mean() * 100),
        "mean_tokens": float(lengths[chosen].float().mean()),
        "best_mean_tokens": float(lengths[best[:, 0]].float().mean()),
    }
