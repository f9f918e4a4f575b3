"""The router: one pass over a clip predicts its assignment (method section 5).

A small ViT: 3D patches, a [CLS] token, one class for each of the m^T candidates.

Shape letters: B batch, F frames, T blocks, H W pixels, D width, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from tokenizer.assignment import Levels
from tokenizer.masks import attend
from tokenizer.model import sincos_positions
from training.config import Config


class RouterConfig(Config):
    """Size of the router (paper: 512 × 6 × 8 on the tokenizer's patches)."""

    levels: tuple[int, ...]
    num_frames: int = 16
    size: int = 128
    patch: tuple[int, int, int] = (4, 8, 8)
    width: int = 512
    layers: int = 6
    heads: int = 8


class RouterLayer(nn.Module):
    """Pre-norm self-attention and MLP over all patches: the router may look at the whole clip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        q, k, v = rearrange(
            self.qkv(self.norm_attention(x)),
            "b n (three h d) -> three b h n d",
            three=3,
            h=self.heads,
        )
        mixed = attend(q, k, v)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


class Router(
    nn.Module,
    PyTorchModelHubMixin,
    coders={
        RouterConfig: (
            lambda config: config.model_dump(mode="json"),
            lambda data: RouterConfig.model_validate(data),
        )
    },
):
    """Clip → one of the m^T candidate assignments."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        config = RouterConfig.model_validate(config)  # a plain dict when read from config.json
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is not divisible by heads {config.heads}")
        self.config = config
        self.levels = Levels(tuple(config.levels))
        frames, rows, columns = config.patch
        self.num_blocks = config.num_frames // frames
        cells = (config.size // rows, config.size // columns)
        self.patch_in = nn.Linear(3 * frames * rows * columns, config.width)
        self.position = nn.Parameter(0.5 * sincos_positions(self.num_blocks, *cells, config.width))
        self.cls_embedding = nn.Parameter(torch.zeros(config.width))
        self.layers = nn.ModuleList(
            RouterLayer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, self.levels.num_candidates(self.num_blocks))

    def patches(self, clips: Tensor) -> Tensor:
        """(B, 3, F, H, W) → (B, N, patch voxels)."""
        frames, rows, columns = self.config.patch
        return rearrange(
            clips, "b c (t f) (h r) (w s) -> b (t h w) (f r s c)", f=frames, r=rows, s=columns
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of all candidates.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1], whole clips of T blocks.

        Returns:
            (B, m^T), in the order of `Levels.candidates`.
        """
        expected = (3, self.config.num_frames, self.config.size, self.config.size)
        if tuple(clips.shape[1:]) != expected:
            raise ValueError(f"clips {tuple(clips.shape)} are not (B, {expected})")
        x = self.patch_in(self.patches(clips)) + self.position
        x = torch.cat([self.cls_embedding.expand(len(x), 1, -1), x], 1)  # (B, 1 + N, D)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm_out(x[:, 0]))

    @torch.no_grad()
    def assign(self, clips: Tensor, prefix: Sequence[int] = ()) -> Tensor:
        """The most probable assignment of each clip, among those that begin with the prefix.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1].
            prefix: token counts of the first blocks, or none.

        Returns:
            (B, T) int64 token counts.
        """
        allowed = self.levels.with_prefix(self.num_blocks, prefix).to(clips.device)
        logits = self(clips).masked_fill(~allowed, float("-inf"))
        return self.levels.candidates(self.num_blocks).to(clips.device)[logits.argmax(-1)]
