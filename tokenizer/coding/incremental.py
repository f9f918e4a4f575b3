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

from tokenizer.attention.clip_groups import attend
from tokenizer.model import VideoTokenizer
from tokenizer.qformer import KeyValue, QFormer, QFormerLayer


@dataclass(frozen=True)
class Past:
    """Keys and values visible to later blocks.

    Attributes:
        own: for each layer keys and values (B, Hd, rows, Dh) of the queries so far.
        references: for each layer those of the references so far (decoder only).
    """

    num_blocks: int = 0
    own: tuple[KeyValue, ...] = ()
    references: tuple[KeyValue, ...] = ()


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, Q, Hd, Dh) over heads-first keys and values, which need no copy; (B, Q, Hd, Dh)."""
    return attend(q.transpose(1, 2), k, v).transpose(1, 2)


def _append(past: tuple[KeyValue, ...], layer: int, k: Tensor, v: Tensor) -> KeyValue:
    """New keys and values (B, N, Hd, Dh) behind those of the past, heads first."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if not past:
        return k.contiguous(), v.contiguous()
    return torch.cat([past[layer][0], k], 2), torch.cat([past[layer][1], v], 2)


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
        whole = model.encoder.references(self.embeddings + places)
        # What serves every past is computed once: references up to each block, heads first …
        ends = [model.num_cells * (t + 1) for t in range(blocks)]
        self.references = [
            [tuple(x[:, :end].transpose(1, 2).contiguous() for x in pair) for pair in whole]
            for end in ends
        ]
        self._queries: dict[tuple[int, int], Tensor] = {}  # … and queries of a block at a level

    def queries(self, t: int, rank: int) -> Tensor:
        """(B, k, D) what block t starts from at the level of this rank."""
        if (t, rank) not in self._queries:
            model, n = self.model, self.model.num_cells
            pooled = model.encoder_places.pool(rank) @ self.embeddings[:, t * n : (t + 1) * n]
            places = model.encoder_places.of_block(t, rank)
            self._queries[t, rank] = model.query_map(pooled) + places
        return self._queries[t, rank]

    def step(self, past: Past, rank: int, rows: Tensor | None = None) -> tuple[Tensor, Past]:
        """Encode the next block at the level of this rank.

        Args:
            past: of the same clips.
            rank: of the level.
            rows: (n,) int64, which of the clips, in any order and more than once; all if None.

        Returns:
            ids (B, k) int64, and the past with this block.
        """
        model, t = self.model, past.num_blocks
        everything = slice(None) if rows is None else rows
        seen = [(k[everything], v[everything]) for k, v in self.references[t]]
        x = self.queries(t, rank)[everything]
        x, own = _run(model.encoder, x, past, lambda index, _: seen[index])
        unit = F.normalize(model.code_in(x).float(), dim=-1)
        ids = model.quantizer.nearest(unit.flatten(0, 1)).unflatten(0, unit.shape[:2])
        return ids, Past(t + 1, own)


class BlockDecoder:
    """Ids to pixels, one block at a time."""

    def __init__(self, model: VideoTokenizer) -> None:
        self.model = model
        self._places: dict[tuple[int, int], Tensor] = {}

    def places(self, t: int, rank: int) -> Tensor:
        """(k, D) of the tokens of block t at the level of this rank."""
        if (t, rank) not in self._places:
            self._places[t, rank] = self.model.decoder_places.of_block(t, rank)
        return self._places[t, rank]

    def step(self, past: Past, ids: Tensor) -> tuple[Tensor, Past]:
        """Decode the next block.

        Args:
            past: of the same B clips.
            ids: (B, k) int64; k is the block's level.

        Returns:
            pixels (B, 3, 4, H, W), not clamped, and the past with this block.
        """
        patches, past = self.patches(past, ids)
        return self.model.pixels(patches), past

    def patches(self, past: Past, ids: Tensor) -> tuple[Tensor, Past]:
        """As `step`, but pixels as `VideoTokenizer.patches` orders them: (B, N, patch voxels)."""
        model, t = self.model, past.num_blocks
        places = model.decoder_places
        rank = model.levels.values.index(ids.shape[1])
        tokens = model.code_out(model.quantizer.lookup(ids))  # (B, k, D)
        start = places.expand(rank, model.config.decoder_start) @ tokens
        position = places.position[t * model.num_cells : (t + 1) * model.num_cells]
        x = model.start_map(start) + position  # (B, N, D)
        codes = model.decoder.norm_references(tokens + self.places(t, rank))
        seen: list[KeyValue] = []

        def references(index: int, layer: QFormerLayer) -> KeyValue:
            k, v = layer.reference_projections(codes)
            seen.append(_append(past.references, index, k, v))
            return seen[-1]

        x, own = _run(model.decoder, x, past, references)
        return model.patch_head(x), Past(t + 1, own, tuple(seen))
