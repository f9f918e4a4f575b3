"""The Q-Former: queries that look at each other, then at fixed references, then think.

One layer kind serves the encoder (1D queries, 3D references) and the decoder (3D queries, 1D
references) of method section 2, points 3 and 6. A layer holds 16 · D² weights.

Shape letters: L packed tokens, D width, Hd heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch.nn.functional as F
from einops import rearrange
from pydantic import model_validator
from torch import Tensor, nn

from evatok.core.config import Config, Depth, Heads, Width, check_parameters
from evatok.core.errors import EvatokError
from tokenizer.attention.batch_layout import BlockEnds, Side
from tokenizer.attention.clip_groups import padded_attention
from tokenizer.cpu import layer as cpu_layer
from training.compilation import any_length, compiled

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
KeyValue = tuple[Tensor, Tensor]
Sides = tuple[Side, Side] | tuple[BlockEnds, BlockEnds]  # of a batch's queries and references


class QFormerConfig(Config):
    """Size of one Q-Former (the paper's "small" is 512 × 6 × 8, "base" 768 × 12 × 12)."""

    width: Width
    layers: Depth
    heads: Heads

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        check_parameters(16 * self.width**2 * self.layers)
        return self


class QFormerLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to the references, MLP; a residual around each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise EvatokError(f"width {width} is not divisible by heads {heads}")
        self.heads = heads
        self.norm_self = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for last in (self.self_out, self.cross_out, self.mlp_out):  # a layer starts as identity
            nn.init.zeros_(last.weight)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (hd dh) -> ... hd dh", hd=self.heads)

    def self_projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., Hd, Dh) of the self-attention, from (..., D)."""
        q, k, v = self.self_qkv(self.norm_self(x)).chunk(3, -1)
        return self._heads(q), self._heads(k), self._heads(v)

    def reference_projections(self, references: Tensor) -> KeyValue:
        """Keys and values (..., Hd, Dh) of the references (..., D)."""
        k, v = self.cross_kv(references).chunk(2, -1)
        return self._heads(k), self._heads(v)

    def forward(
        self,
        x: Tensor,
        references: Tensor | KeyValue,
        self_attention: Attention,
        cross_attention: Attention,
    ) -> Tensor:
        """One layer.

        Args:
            x: (..., D) queries.
            references: (..., D), or their keys and values from `reference_projections` where
                these serve more than one call.
            self_attention: (q, k, v), each (..., Hd, Dh), to the mixed values, likewise.
            cross_attention: likewise; k and v are the references'.

        Returns:
            (..., D) updated queries.
        """
        x = x + self.self_out(self_attention(*self.self_projections(x)).flatten(-2))
        if isinstance(references, Tensor):
            references = self.reference_projections(references)
        q = self._heads(self.cross_q(self.norm_cross(x)))
        x = x + self.cross_out(cross_attention(q, *references).flatten(-2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


def padded_layer(
    layer: QFormerLayer, x: Tensor, references: Tensor, own: Side, other: Side
) -> Tensor:
    """One layer on padded attention; what `training.compilation` makes one piece of code of."""
    return layer(
        x,
        references,
        lambda q, k, v: padded_attention(q, k, v, own, own),
        lambda q, k, v: padded_attention(q, k, v, own, other),
    )


def layer_of_batch(layer: QFormerLayer, x: Tensor, references: Tensor, sides: Sides) -> Tensor:
    """One layer as it is trained with compiled parts, on a batch whatever its assignments."""
    own, other = sides
    if isinstance(own, BlockEnds) and isinstance(other, BlockEnds):
        epsilon = layer.norm_self.eps
        return cpu_layer.trained_layer(layer, x, references, (own, other), layer.heads, epsilon)
    assert isinstance(own, Side) and isinstance(other, Side)
    for rows, side in ((x, own), (references, other)):
        if side.places is not None and side.rows is not None and side.is_token is not None:
            any_length(0, rows, side.rows)
            any_length(1, side.blocks, side.places, side.is_token)
    return compiled(padded_layer)(layer, x, references, own, other)


class QFormer(nn.Module):
    """A stack of layers over queries whose references no layer changes."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.norm_references = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(
            QFormerLayer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)

    def references(self, references: Tensor) -> list[KeyValue]:
        """Keys and values of the references (..., D) for every layer."""
        references = self.norm_references(references)
        return [layer.reference_projections(references) for layer in self._layers()]

    def _layers(self) -> list[QFormerLayer]:
        return [layer for layer in self.layers if isinstance(layer, QFormerLayer)]

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        self_attention: Attention,
        cross_attention: Attention,
    ) -> Tensor:
        """Run all layers.

        Args:
            queries: (..., D).
            references: (..., D).
            self_attention: see `QFormerLayer.forward`.
            cross_attention: see `QFormerLayer.forward`.

        Returns:
            (..., D), normalised.
        """
        return self.forward_features(queries, references, self_attention, cross_attention)[0]

    def forward_features(
        self,
        queries: Tensor,
        references: Tensor,
        self_attention: Attention,
        cross_attention: Attention,
        feature_layer: int | None = None,
        sides: Sides | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, and the output of layer `feature_layer` (from 1), (..., D), before a norm.

        With `sides`, layers are compiled, and attention is that of the whole batch, not
        `self_attention` and `cross_attention`.
        """
        references = self.norm_references(references)
        kept = None
        for number, layer in enumerate(self._layers(), 1):
            if sides is None:
                queries = layer(queries, references, self_attention, cross_attention)
            else:
                queries = layer_of_batch(layer, queries, references, sides)
            kept = queries if number == feature_layer else kept
        return self.norm_out(queries), kept
