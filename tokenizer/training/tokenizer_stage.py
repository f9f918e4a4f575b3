"""The trained stages: proxy tokenizer, router, final tokenizer (method sections 3–5).

Stage 2, the search, trains nothing: `tokenizer.search.candidates`. Proxy and final tokenizer are
one class; they differ in who chooses the assignments: chance, or the frozen router.

Shape letters: B batch, F frames, T blocks, H W pixels, M = m^T candidates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from evaluation.metrics.quality import mean_where_moving, moving_psnr
from evatok.core.compute.devices import device_of
from evatok.core.config import Config, TrainConfig
from evatok.core.errors import EvatokError
from tokenizer.losses.adversarial import AdversarialConfig, make_objective
from tokenizer.losses.alignment import (
    AlignmentConfig,
    Teacher,
    align,
    alignment_loss,
    make_teacher,
    tokenizer_of,
)
from tokenizer.losses.reconstruction import LossConfig, pixel_errors, tokenizer_loss
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.reward import psnr_of_mse
from tokenizer.training.initialization import (
    check_same_tokens,
    initialise_codes,
    initialise_from,
    initialise_patches,
)
from training.compilation import compiled
from training.loop import StageBase, Validation
from video.clips import sides, to_frames
from video.dataset import ClipSampler, DataConfig


class CodebookConfig(Config):
    """Upkeep of the codebook."""

    usage_decay: float = Field(default=0.98, gt=0, lt=1)
    restart_every: int = Field(default=50, ge=0)  # steps; 0 = never
    restart_below: float = Field(
        default=0.05, ge=0
    )  # share of the even usage 1 / K that counts as dead


class TokenizerTraining(Config):
    """Settings that the proxy and the final stage share."""

    data: DataConfig
    model: TokenizerConfig
    loss: LossConfig = LossConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    codebook: CodebookConfig = CodebookConfig()
    train: TrainConfig
    # Distinct assignments in a batch: clips that share one are computed together. 0 = no limit.
    assignments_per_batch: int = Field(default=0, ge=0)
    # Start the patch layers from principal components and the codebook from outputs.
    start_from_data: bool = False
    # Folder of a trained tokenizer to start from instead: the same, or of shorter clips, with fewer
    # layers, codes or numbers of a code.
    start_from: Path | None = None
    # decoder: that of the tokenizer in `start_from` alone, more layers allowed. Tokens stay what
    # they were, and so do the routers, token files and generators made with it.
    trained: Literal["all", "decoder"] = "all"
    validation_clips: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start_from is not None and self.start_from_data:
            raise EvatokError("give start_from or start_from_data, one of the two")
        return self

    @model_validator(mode="after")
    def _a_decoder_of_something(self) -> Self:
        if self.trained == "all":
            return self
        if self.start_from is None:
            raise EvatokError("trained: decoder needs start_from: whose decoder it is")
        of_codes = {
            "loss.codebook": self.loss.codebook,
            "loss.commitment": self.loss.commitment,
            "loss.entropy": self.loss.entropy,
            "codebook.restart_every": self.codebook.restart_every,
        }
        if on := [name for name, value in of_codes.items() if value]:
            raise EvatokError(f"trained: decoder leaves the codes alone: set {', '.join(on)} to 0")
        return self


class ProxyConfig(TokenizerTraining):
    """Stage 1: uniformly random assignments."""

    stage: Literal["proxy"] = "proxy"


class FinalConfig(TokenizerTraining):
    """Stage 4: from scratch, on a frozen router's assignments, or on one level (a baseline)."""

    stage: Literal["final"] = "final"
    router: Path | None = None  # folder of the trained router
    uniform: int | None = None  # the level of every block of every clip, instead of a router
    # For a router with `preference`: each clip gets a w_q drawn from this range, so that the
    # tokenizer is good along the whole curve. None: the router's own w_q.
    w_q_range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_way_to_assign(self) -> FinalConfig:
        if (self.router is None) == (self.uniform is None):
            raise EvatokError("give a router or a uniform level, one of the two")
        if self.uniform is not None and self.uniform not in self.model.levels:
            raise EvatokError(f"uniform {self.uniform} is not one of levels {self.model.levels}")
        if self.w_q_range is not None:
            low, high = self.w_q_range
            if self.router is None or not 0 <= low <= high <= 2:
                raise EvatokError("w_q_range needs a router, and two numbers in [0, 2], low first")
        return self


class ClipAssigner(Protocol):
    """Chooses assignments: clips (B, 3, F, H, W) → (B, T) int64 token counts."""

    def __call__(self, clips: Tensor) -> Tensor: ...


class TokenizerStage(StageBase):
    """Stages 1 and 4."""

    def __init__(self, config: ProxyConfig | FinalConfig) -> None:
        self.config = config
        self.seed = config.train.seed
        self.sampler = ClipSampler(config.data, "train")
        self.held_out = ClipSampler(config.data, "test")
        self.teacher = self._teacher()
        self.perceptual = config.loss.perceptual.load()
        torch.manual_seed(self.seed)
        self.model: nn.Module = VideoTokenizer(config.model)
        if config.start_from is not None:
            source = VideoTokenizer.from_pretrained(config.start_from)
            if config.trained == "decoder":
                check_same_tokens(config.model, source.config)
                self.tokenizer.freeze_encoder()
            initialise_from(self.model, source)
        if self.teacher is not None:
            self.model = align(self.tokenizer, self.teacher, config.alignment.layer)
        self.objective = make_objective(
            config.adversarial, config.model.num_frames, config.model.size
        )
        self._made: Tensor | None = None  # reconstructions of the last part, for the adversary
        self.router = None
        if isinstance(config, FinalConfig) and config.router is not None:
            self.router = Router.from_pretrained(config.router).eval().requires_grad_(False)
        # Of each part of the step: ids (L,), normalised inputs (L, D), tokens of each clip (B,).
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        if config.start_from_data:
            self._start_from_data()

    @property
    def tokenizer(self) -> VideoTokenizer:
        """The tokenizer in `model`."""
        return tokenizer_of(self.model)

    def _teacher(self) -> Teacher | None:
        config = self.config
        if not config.alignment.weight:
            return None
        frames, rows, columns = config.model.patch
        height, width = sides(config.model.size)
        grid = (config.model.num_frames // frames, height // rows, width // columns)
        return make_teacher(config.alignment, config.model.num_frames, grid)

    def _start_from_data(self) -> None:
        rows = max(64, self.config.train.batch_size)
        clips, _, _ = self.sampler.batch(0, rows, self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        initialise_patches(self.tokenizer, clips)
        initialise_codes(self.tokenizer, clips, self._random(rows, generator), generator)

    def _random(self, rows: int, generator: torch.Generator) -> Tensor:
        """(rows, T) assignments drawn uniformly, sharing at most `assignments_per_batch`."""
        levels = self.tokenizer.levels
        distinct = min(rows, self.config.assignments_per_batch or rows)
        ranks = torch.randint(
            len(levels), (distinct, self.tokenizer.num_blocks), generator=generator
        )
        repeats = -(-rows // distinct)
        return levels.tensor[ranks].repeat(repeats, 1)[:rows]

    def _uniform(self, rows: int, level: int | None) -> Tensor:
        assert level is not None
        return torch.full((rows, self.tokenizer.num_blocks), level)

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """Clips of one optimiser step on this rank, and what decides their assignments.

        That is the assignments (B, T); with a router, which runs in `loss` on the model's device,
        each clip's w_q (B,), or nothing where it knows only one.
        """
        rows = self.config.train.batch_size
        clips, _, _ = self.sampler.batch(step, rows, self.seed, rank, world)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if isinstance(self.config, FinalConfig):
            if self.router is None:
                return clips, self._uniform(len(clips), self.config.uniform)
            if self.config.w_q_range is None:
                return (clips,)
            low, high = self.config.w_q_range
            w_q = low + (high - low) * torch.rand(rows, generator=generator)
            return clips, w_q[rank::world]
        return clips, self._random(rows, generator)[rank::world]

    def assigned(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Assignments (B, T) of a batch, or of a part of one, on its device.

        The router works in float32, as when it is used, also where the step is in bf16.
        """
        if self.router is None:
            return batch[1]
        clips, *w_q = batch
        with torch.autocast(clips.device.type, enabled=False):
            return self.router.to(clips.device).assign(clips, w_q=w_q[0] if w_q else None)

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its unweighted terms."""
        clips, assignment = batch[0], self.assigned(batch)
        result = model(clips, assignment)
        self._seen.append((result.tokens.ids, result.units, assignment.sum(1)))
        self._made = None if self.objective is None else result.clips
        total, terms = tokenizer_loss(
            result, clips, self.config.loss, self.perceptual, generator, self.config.train.compile
        )
        if self.teacher is not None:
            aligned = alignment_loss(result.features, self.teacher(clips))
            total = total + self.config.alignment.weight * aligned
            terms["alignment"] = aligned.detach()
        errors = compiled(pixel_errors) if self.config.train.compile else pixel_errors
        _, error, _ = errors(result.clips.detach(), clips, clamp=True)
        return total, terms | {"psnr": psnr_of_mse(error).mean()}

    @property
    def adversary(self) -> nn.Module | None:
        """The discriminator, where `adversarial.weight` is not 0."""
        return None if self.objective is None else self.objective.adversary

    @property
    def adversary_config(self) -> AdversarialConfig:
        """Training settings of the discriminator."""
        return self.config.adversarial

    def loss_against(
        self,
        model: nn.Module,
        adversary: nn.Module,
        batch: tuple[Tensor, ...],
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, and the discriminator's judgement of the reconstructions."""
        others, terms = self.loss(model, batch, generator)
        made, self._made = self._made, None
        assert self.objective is not None and made is not None
        last = self.tokenizer.patch_head.weight
        loss, judged = self.objective.generator_side(adversary, batch[0], made, others, last)
        return loss, terms | judged

    def adversary_loss(
        self, adversary: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on the reconstructions that it has just judged."""
        assert self.objective is not None
        return self.objective.discriminator_side(adversary, generator)

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        """Watch the codebook's use by all parts and processes, and restart dead codes."""
        if self.objective is not None:
            self.objective.after_step()
        ids, unit, lengths = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        if self.config.trained == "decoder":
            return
        settings, quantizer = self.config.codebook, self.tokenizer.quantizer
        quantizer.update_usage(ids, settings.usage_decay)
        if settings.restart_every and step % settings.restart_every == 0:
            quantizer.restart_dead_codes(unit, settings.restart_below, generator, lengths)

    def exported(self, model: nn.Module) -> nn.Module:
        """The tokenizer, without what only its training needs."""
        return tokenizer_of(model)

    @torch.no_grad()
    def validate(self, model: nn.Module, step: int) -> Validation:
        """PSNR, also where clips move, of held-out clips at every level or the router's choice."""
        model = tokenizer_of(model)
        clips, _ = self.held_out.load(self.held_out.eval_clips(self.config.validation_clips))
        scalars: dict[str, float] = {}
        rows = [clips]
        if self.router is None:
            only = self.config.uniform if isinstance(self.config, FinalConfig) else None
            choices = {
                f"psnr_uniform_{level}": self._uniform(len(clips), level)
                for level in (model.levels.values if only is None else (only,))
            }
        else:
            router = self.router.to(device_of(model))
            choices = {"psnr_router": assign_in_parts(router.assign, clips, device_of(model))}
            scalars["mean_tokens"] = float(choices["psnr_router"].sum(1).float().mean())
        used: list[Tensor] = []
        for name, assignment in choices.items():
            out, ids = reconstruct(model, clips, assignment)
            scalars[name] = mean_psnr(out, clips)
            moved = mean_where_moving(moving_psnr(out, clips))
            if moved is not None:
                scalars[f"moving_{name}"] = moved
            rows.append(out)
            used.append(ids)
        size = self.config.model.codebook_size
        scalars["codebook_use"] = float(
            (torch.bincount(torch.cat(used), minlength=size) > 0).float().mean()
        )
        return Validation(scalars=scalars, images={"reconstructions": picture(rows)})


@torch.no_grad()
def reconstruct(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, part: int = 32
) -> tuple[Tensor, Tensor]:
    """Reconstruct in parts of `part` clips, on the model's device.

    Returns:
        On the CPU: (B, 3, F, H, W) float32 in [−1, 1], and all ids (L,).
    """
    out, ids, device = [], [], device_of(model)
    for x, a in zip(clips.split(part), assignment.split(part), strict=True):
        result = model(x.to(device), a.to(device))
        out.append(result.clips.float().clamp(-1, 1).cpu())
        ids.append(result.tokens.ids.cpu())
    return torch.cat(out), torch.cat(ids)


def assign_in_parts(
    assigner: ClipAssigner, clips: Tensor, device: torch.device, part: int = 64
) -> Tensor:
    """Assignments (B, T), on the CPU, of many clips, `part` at a time on a device."""
    return torch.cat([assigner(x.to(device)).cpu() for x in clips.split(part)])


def mean_psnr(out: Tensor, clips: Tensor) -> float:
    """Mean over clips of each clip's PSNR in dB; both (B, 3, F, H, W) in [−1, 1]."""
    return float(psnr_of_mse((out - clips).square().mean((1, 2, 3, 4))).mean())


def picture(rows: list[Tensor], columns: int = 12) -> np.ndarray:
    """Contact sheet (H, W, 3) uint8: a clip a column, one middle frame, a row a version."""
    strips = []
    for clips in rows:
        frames = torch.stack(
            [to_frames(c)[min(c.shape[1] // 2 + 1, c.shape[1] - 1)] for c in clips[:columns]]
        )
        strips.append(torch.cat(list(frames), 1))  # (H, W · columns, 3)
    return torch.cat(strips).numpy()
