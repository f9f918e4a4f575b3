"""Encoding and decoding block by block, with keys and values kept.

Because attention is block-causal, block t needs only the keys and values of blocks < t: the same
step serves streams (frames out as soon as a block's codes are there) and the exact tree search
(every prefix computed once). `Past` is immutable: two continuations may share one.

Shape letters: B batch, T blocks, N 3D positions of a block, D width, Hd heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.masks import block_causal_attention
from tokenizer.model import VideoTokenizer
from tokenizer.qformer import KeyValue, QFormer, QFormerLayer


@dataclass(frozen=True)
class Past:
    """What later blocks may look at.

    Attributes:
        own: for each layer keys and values (B, rows, Hd, Dh) of the queries so far.
        references: for each layer those of the references so far (decoder only).
    """

    num_blocks: int = 0
    own: tuple[KeyValue, ...] = ()
    references: tuple[KeyValue, ...] = ()


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return block_causal_attention(q, k, v, (q.shape[1],), (k.shape[1],))


def _append(past: tuple[KeyValue, ...], layer: int, k: Tensor, v: Tensor) -> KeyValue:
    if not past:
        return k, v
    return torch.cat([past[layer][0], k], 1), torch.cat([past[layer][1], v], 1)


def _run(
    former: QFormer,
    x: Tensor,
    past: Past,
    references: Callable[[int, QFormerLayer], KeyValue],
) -> tuple[Tensor, tuple[KeyValue, ...]]:
    """All layers over the queries x (B, rows, D) of one block; also the queries' new keys."""
    kept: list[KeyValue] = []
    for index, layer in enumerate(former._layers()):

        def own(q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
            kept.append(_append(past.own, index, k, v))
            return _attend(q, *kept[-1])

        x = layer(x, references(index, layer), own, _attend)
    return former.norm_out(x), tuple(kept)


class BlockEncoder:
    """Clips to ids, one block at a time, any level for each."""

    def __init__(self, model: VideoTokenizer, clips: Tensor) -> None:
        """Prepare clips (B, 3, F, H, W), F = 4 T."""
        self.model = model
        self.embeddings = model.patch_in(model.patches(clips))  # (B, T·N, D)
        blocks = self.embeddings.shape[1] // model.num_cells
        places = model.encoder_places.blocks(blocks)
        self.references = model.encoder.references(self.embeddings + places)

    def step(self, past: Past, rank: int, rows: Tensor | None = None) -> tuple[Tensor, Past]:
        """Encode the next block at the level of this rank.

        Args:
            past: of the same clips.
            rank: of the level.
            rows: (n,) int64, which of the clips; all if None.

        Returns:
            ids (B, k) int64, and the past with this block.
        """
        model, t, n = self.model, past.num_blocks, self.model.num_cells
        everything = slice(None) if rows is None else rows
        block = self.embeddings[:, t * n : (t + 1) * n][everything]
        pooled = model.encoder_places.pool(rank) @ block
        x = model.query_map(pooled) + model.encoder_places.of_block(t, rank)  # (B, k, D)
        seen = [
            (k[:, : (t + 1) * n][everything], v[:, : (t + 1) * n][everything])
            for k, v in self.references
        ]
        x, own = _run(model.encoder, x, past, lambda index, _: seen[index])
        unit = F.normalize(model.code_in(x).float(), dim=-1)
        ids = model.quantizer.nearest(unit.flatten(0, 1)).unflatten(0, unit.shape[:2])
        return ids, Past(t + 1, own)


class BlockDecoder:
    """Ids to pixels, one block at a time."""

    def __init__(self, model: VideoTokenizer) -> None:
        self.model = model

    def step(self, past: Past, ids: Tensor) -> tuple[Tensor, Past]:
        """Decode the next block.

        Args:
            past: of the same B clips.
            ids: (B, k) int64; k is the block's level.

        Returns:
            pixels (B, 3, 4, H, W), not clamped, and the past with this block.
        """
        model, t = self.model, past.num_blocks
        places = model.decoder_places
        rank = int(model.levels.ranks(torch.tensor([ids.shape[1]]))[0])
        tokens = model.code_out(model.quantizer.lookup(ids))  # (B, k, D)
        start = places.spread(rank, model.config.decoder_start) @ tokens
        position = places.position[t * model.num_cells : (t + 1) * model.num_cells]
        x = model.start_map(start) + position  # (B, N, D)
        codes = model.decoder.norm_references(tokens + places.of_block(t, rank))
        seen: list[KeyValue] = []

        def references(index: int, layer: QFormerLayer) -> KeyValue:
            k, v = layer.reference_projections(codes)
            seen.append(_append(past.references, index, k, v))
            return seen[-1]

        x, own = _run(model.decoder, x, past, references)
        return model.pixels(model.patch_head(x)), Past(t + 1, own, tuple(seen))
