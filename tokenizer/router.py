"""The router: one pass over a clip predicts its assignment (method section 5).

A small ViT: 3D patches, a [CLS] token, one class for each of the m^T candidates. With `preference`
the weight of quality, w_q, is an input: one router then serves the whole quality–cost curve.

Shape letters: B batch, F frames, T blocks, H W pixels, D width, N patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from evatok.core.config import (
    Config,
    Depth,
    Frames,
    Heads,
    Level,
    PictureSize,
    PixelCount,
    Width,
    check_parameters,
)
from evatok.core.errors import EvatokError
from evatok.core.loading.pretrained import Pretrained
from tokenizer.assignment import Levels
from tokenizer.model import sincos_positions
from tokenizer.search.reward import Quality, RewardStats
from tokenizer.vit import ViTLayer
from video.clips import sides

MOST_CANDIDATES = 2**20  # the paper has 625


class RouterConfig(Config):
    """Size of the router (paper: 512 × 6 × 8 on the tokenizer's patches) and its reward."""

    levels: tuple[Level, ...]
    num_frames: Frames = 16
    size: PictureSize = 128
    patch: tuple[Frames, PixelCount, PixelCount] = (4, 8, 8)
    width: Width = 512
    layers: Depth = 6
    heads: Heads = 8
    preference: bool = False  # w_q is an input
    # What it has learned to maximise; written by the training. With `preference`, w_q is what it
    # takes when none is given.
    w_q: float = Field(default=1.2, ge=0, le=2)
    standard: RewardStats | None = None
    quality: Quality = "psnr"

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        blocks = self.num_frames // self.patch[0]
        if len(self.levels) > 1 and blocks > math.log(MOST_CANDIDATES, len(self.levels)):
            raise EvatokError(
                f"{blocks} blocks of {len(self.levels)} levels have more than {MOST_CANDIDATES} "
                "assignments, one class each: give longer patches or fewer levels"
            )
        check_parameters(12 * self.width**2 * self.layers + self.width * len(self.levels) ** blocks)
        return self


class Router(
    nn.Module,
    Pretrained,
    pipeline_tag="video-classification",
    coders={
        RouterConfig: (
            lambda config: config.model_dump(mode="json"),
            lambda data: RouterConfig.model_validate(data),
        )
    },
):
    """Clip → one of the m^T candidate assignments."""

    looked_up = ("position", "cls_embedding")
    output_layers = ("head",)

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        config = RouterConfig.model_validate(config)  # a plain dict when read from config.json
        self.config = config
        self.levels = Levels(tuple(config.levels))
        frames, rows, columns = config.patch
        self.num_blocks = config.num_frames // frames
        height, width = sides(config.size)
        cells = (height // rows, width // columns)
        self.patch_in = nn.Linear(3 * frames * rows * columns, config.width)
        self.position = nn.Parameter(0.5 * sincos_positions(self.num_blocks, *cells, config.width))
        self.cls_embedding = nn.Parameter(torch.zeros(config.width))
        self.preference = None
        if config.preference:
            self.preference = nn.Sequential(
                nn.Linear(1, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
        self.layers = nn.ModuleList(
            ViTLayer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, self.levels.num_candidates(self.num_blocks))

    def patches(self, clips: Tensor) -> Tensor:
        """(B, 3, F, H, W) → (B, N, patch voxels)."""
        frames, rows, columns = self.config.patch
        return rearrange(
            clips, "b c (t f) (h r) (w s) -> b (t h w) (f r s c)", f=frames, r=rows, s=columns
        )

    def forward(self, clips: Tensor, w_q: Tensor | None = None) -> Tensor:
        """Logits of all candidates.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1], whole clips of T blocks.
            w_q: (B,) float in [0, 2], the weight of quality; for a router with `preference`,
                whose default is `config.w_q`.

        Returns:
            (B, m^T), in the order of `Levels.candidates`.
        """
        expected = (3, self.config.num_frames, *sides(self.config.size))
        if tuple(clips.shape[1:]) != expected:
            raise EvatokError(f"clips {tuple(clips.shape)} are not (B, {expected})")
        x = self.patch_in(self.patches(clips.to(self.patch_in.weight.dtype))) + self.position
        first = self.cls_embedding.expand(len(x), 1, -1)
        if self.preference is not None:
            if w_q is None:
                w_q = torch.full((len(x),), self.config.w_q, device=x.device)
            first = first + self.preference((w_q - 1)[:, None, None].to(first.dtype))  # (B, 1, D)
        elif w_q is not None:
            raise EvatokError(f"this router knows one w_q only, {self.config.w_q:g}")
        x = torch.cat([first, x], 1)  # (B, 1 + N, D)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm_out(x[:, 0]))

    @torch.no_grad()
    def assign(
        self,
        clips: Tensor,
        prefix: Sequence[int] | Tensor = (),
        *,
        w_q: float | Tensor | None = None,
        max_tokens: int | None = None,
    ) -> Tensor:
        """The most probable assignment of each clip, among those that are allowed.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1].
            prefix: token counts of the first blocks, or none: (p,), or (B, p) clip by clip.
            w_q: weight of quality in [0, 2], one or (B,); needs a router with `preference`.
            max_tokens: the most that a clip may take.

        Returns:
            (B, T) int64 token counts.

        Raises:
            EvatokError: no assignment is allowed, or this router takes no w_q.
        """
        candidates = self.levels.candidates(self.num_blocks).to(clips.device)
        given = torch.as_tensor(prefix, dtype=torch.int64, device=clips.device)
        allowed = self.levels.with_prefix(self.num_blocks, given)  # (M,) or (B, M)
        if max_tokens is not None:
            allowed = allowed & (candidates.sum(1) <= max_tokens)
            if not bool(allowed.any(-1).all()):
                count = given.shape[-1]
                start = f" that begins with {tuple(given.tolist())}" if count else ""
                shortest = given.sum(-1).max() + self.levels.values[0] * (self.num_blocks - count)
                raise EvatokError(
                    f"no assignment{start} has at most {max_tokens} tokens: the shortest has "
                    f"{int(shortest)}"
                )
        wanted = None
        if w_q is not None:
            wanted = torch.as_tensor(w_q, dtype=torch.float32, device=clips.device)
            if not bool(((wanted >= 0) & (wanted <= 2)).all()):
                raise EvatokError(f"w_q {w_q} is outside [0, 2]")
            wanted = wanted.expand(len(clips))
        logits = self(clips, wanted).masked_fill(~allowed, float("-inf"))
        return candidates[logits.argmax(-1)]
