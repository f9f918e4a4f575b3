"""The layer of networks that look at a whole clip at once: the router, the patch discriminator.

Shape letters: B batch, N patches, D width, Hd heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import attend


class ViTLayer(nn.Module):
    """Pre-norm self-attention and MLP over all patches: nothing is masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise EvatokError(f"width {width} is not divisible by heads {heads}")
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
