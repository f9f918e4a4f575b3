"""Discriminators: clips to logits, above 0 for "real".

One interface: a module whose forward takes clips (B, 3, F, H, W) in [−1, 1] and returns (B, N)
logits, however many it makes of a clip. Here is the basic recipe's (method section 3), a plain
transformer over the patches of the whole clip; the advanced one's is in
`tokenizer.losses.semantic_discriminator`.

Shape letters: B batch, F frames, H W pixels, D width, N logits of a clip.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from evatok.core.config import Config, Depth, Frames, Heads, PixelCount, Width
from evatok.core.errors import EvatokError
from tokenizer.model import sincos_positions
from tokenizer.vit import ViTLayer
from video.clips import Size, sides


class PatchDiscriminatorConfig(Config):
    """Size of the transformer; the defaults are LARP's run, 38.2 M weights on 16 × 128 × 128."""

    kind: Literal["patch"] = "patch"
    patch: tuple[Frames, PixelCount, PixelCount] = (4, 8, 8)  # frames, rows, columns
    width: Width = 512
    layers: Depth = 12
    heads: Heads = 8
    # One logit from a [CLS] token, as LARP has it; false = one a patch.
    per_clip: bool = False


class PatchDiscriminator(nn.Module):
    """A ViT over 3D patches that judges each of them in view of the whole clip."""

    position: Tensor

    output_layers = ("logit_head",)

    def __init__(self, config: PatchDiscriminatorConfig, num_frames: int, size: Size) -> None:
        """Make the network for clips of one shape.

        Raises:
            EvatokError: the patch does not divide the clip, or the heads the width.
        """
        super().__init__()
        height, width = sides(size)
        for name, total, part in zip(
            ("num_frames", "size", "size"), (num_frames, height, width), config.patch, strict=True
        ):
            if total % part:
                raise EvatokError(f"{name} {total} is not divisible by the patch's {part}")
        self.config = config
        self.clip_shape = (3, num_frames, height, width)
        frames, rows, columns = config.patch
        cells = (num_frames // frames, height // rows, width // columns)
        self.patch_in = nn.Linear(3 * frames * rows * columns, config.width)
        position = 0.5 * sincos_positions(*cells, config.width)
        self.register_buffer("position", position, persistent=False)  # fixed
        self.cls_embedding = nn.Parameter(torch.zeros(config.width)) if config.per_clip else None
        self.layers = nn.ModuleList(
            ViTLayer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.logit_head = nn.Linear(config.width, 1)

    def forward(self, clips: Tensor) -> Tensor:
        """Real/fake logits.

        Args:
            clips: (B, 3, F, H, W) float around [−1, 1], of the configured shape.

        Returns:
            (B, N), N = patches of a clip, or 1 with `per_clip`.
        """
        if tuple(clips.shape[1:]) != self.clip_shape:
            raise EvatokError(f"clips {tuple(clips.shape)} are not (B, {self.clip_shape})")
        frames, rows, columns = self.config.patch
        patches = rearrange(
            clips,
            "b c (t f) (h r) (w s) -> b (t h w) (f r s c)",
            f=frames,
            r=rows,
            s=columns,
        )
        x = self.patch_in(patches) + self.position  # (B, patches, D)
        if self.cls_embedding is not None:
            x = torch.cat([self.cls_embedding.expand(len(x), 1, -1).to(x.dtype), x], 1)
        for layer in self.layers:
            x = layer(x)
        judged = x[:, :1] if self.cls_embedding is not None else x
        return self.logit_head(self.norm_out(judged)).squeeze(-1)
