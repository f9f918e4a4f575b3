"""The adaptive-length video tokenizer: one implementation for nano and paper scale.

Method section 2. A clip is cut into patches of 4 frames × 8 × 8 pixels; block t gets k_t queries,
pooled from its own patch embeddings; a Q-Former encoder, a vector quantizer and a Q-Former decoder
follow. Every attention is block-causal, so all that belongs to block t depends on blocks ≤ t only.

Shape letters: B batch, F frames, T blocks, H W pixels, N 3D positions of a block, L packed tokens,
Q queries, D width, K codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from evatok.core.config import Config, Count, Frames, Level, PictureSize, PixelCount, Width
from evatok.core.errors import EvatokError
from evatok.core.loading.pretrained import Pretrained
from tokenizer.assignment import Levels, grid
from tokenizer.attention.batch_layout import BlockEnds, BlockLevels, reordered
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.cpu import layer as cpu_layer
from tokenizer.qformer import QFormer, QFormerConfig, Sides
from tokenizer.quantizer import Quantized, VectorQuantizer
from tokenizer.tokens import Tokens
from video.clips import sides


class TokenizerConfig(Config):
    """Everything that fixes the tokenizer's weights and shapes."""

    levels: tuple[Level, ...]
    num_frames: Frames = 16
    size: PictureSize = 128  # pixels: the side of a square, or [height, width]
    patch: tuple[Frames, PixelCount, PixelCount] = (4, 8, 8)  # frames, rows, columns
    encoder: QFormerConfig
    decoder: QFormerConfig
    codebook_size: Count = 16_384
    code_dim: Width = 8
    # Temperature of the soft assignment in the entropy loss.
    entropy_temperature: float = 0.01
    # Where the decoder's 3D queries start: "first" = the first 1D token of the block (the paper),
    # "aligned" = the block's 1D tokens spread over the grid they were pooled from.
    decoder_start: Literal["first", "aligned"] = "first"
    # A learned vector for every token of every level, added to its place: the index in the block.
    token_positions: bool = False


@dataclass
class Reconstruction:
    """Result of `VideoTokenizer.forward`.

    Attributes:
        clips: (B, 3, F, H, W), not clamped.
        tokens: ids and assignment.
        quantized: codes, ids and losses of the quantizer, rows sorted by assignment.
        units: (L, D) what was quantized, `quantized.unit` in the order of the tokens; no gradient.
        features: (B, T, H, W, D) of the decoder layer asked for, cells of the patch grid; None
            where none was asked for.
    """

    clips: Tensor
    tokens: Tokens
    quantized: Quantized
    units: Tensor
    features: Tensor | None = None


@lru_cache(maxsize=256)
def resample_matrix(
    source: tuple[int, int],
    target: tuple[int, int],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Linear map from a grid to another: area means when shrinking, bilinear otherwise.

    Args:
        source: rows and columns.
        target: rows and columns.
        device: where the matrix is; the CPU if None.
        dtype: of the matrix.

    Returns:
        (target cells, source cells), rows add up to 1. Cached for each device and type: do not
        write into it.
    """
    with torch.inference_mode(False):  # the same matrix serves training later
        return _resampling(source, target).to(device, dtype)


@lru_cache(maxsize=256)
def first_cell(
    tokens: int, cells: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(cells, tokens) that give every cell the first token. Cached, as `resample_matrix`."""
    with torch.inference_mode(False):
        matrix = torch.zeros(cells, tokens, device=device, dtype=dtype)
        matrix[:, 0] = 1
        return matrix


def _resampling(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    basis = torch.eye(source[0] * source[1]).view(-1, 1, *source)
    if target[0] <= source[0] and target[1] <= source[1]:
        out = F.interpolate(basis, target, mode="area")
    else:
        out = F.interpolate(basis, target, mode="bilinear", align_corners=False)
    return out.flatten(1).T.contiguous()


def sincos_positions(num_blocks: int, rows: int, columns: int, width: int) -> Tensor:
    """Fixed 3D sine-cosine table, the start of the learned positions.

    Returns:
        (T · rows · columns, D) float32: a third of the width for each axis, the rest zero.
    """
    axis_width = width // 6 * 2
    frequencies = 1.0 / 100 ** (torch.arange(axis_width // 2) / (axis_width // 2))
    table = torch.zeros(num_blocks, rows, columns, width)
    for axis, size in enumerate((num_blocks, rows, columns)):
        angles = torch.arange(size)[:, None] * frequencies * (torch.pi / 2)
        shape = [1, 1, 1, axis_width // 2]
        shape[axis] = size
        sines, cosines = table[..., axis * axis_width :].split(axis_width // 2, -1)[:2]
        sines[:], cosines[:] = angles.sin().view(shape), angles.cos().view(shape)
    return table.view(-1, width)


class PositionEmbedding(nn.Module):
    """Learned 3D positions and levels of one Q-Former, and their 1D counterparts.

    The position of a 1D token is the mean over the cells that it was pooled from, so that locality
    need not be learned; the level is added so that cells of different size can be told apart.
    """

    looked_up = ("position", "level_embedding", "token_position")

    def __init__(
        self,
        levels: Levels,
        num_blocks: int,
        cells: tuple[int, int],
        width: int,
        token_positions: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.cells = levels, cells
        self.position = nn.Parameter(0.5 * sincos_positions(num_blocks, *cells, width))
        self.level_embedding = nn.Parameter(torch.randn(len(levels), width) * 0.02)
        self.token_position = None
        if token_positions:  # all levels one after the other, from zero: no effect at the start
            self.token_position = nn.Parameter(torch.zeros(sum(levels.values), width))

    def blocks(self, num_blocks: int) -> Tensor:
        """(T · N, D) positions of the first T blocks."""
        return self.position[: num_blocks * self.cells[0] * self.cells[1]]

    def of_block(self, block: int, rank: int) -> Tensor:
        """(k, D) places of the tokens of one block at the level with this rank."""
        count = self.cells[0] * self.cells[1]
        positions = self.position[block * count : (block + 1) * count]
        places = self.pool(rank) @ positions + self.level_embedding[rank]
        if self.token_position is None:
            return places
        first = sum(self.levels.values[:rank])
        return places + self.token_position[first : first + self.levels.values[rank]]

    def pool(self, rank: int) -> Tensor:
        """(k, N) the means that make k cells of a block's N."""
        shape = grid(self.levels.values[rank], *self.cells)
        return resample_matrix(self.cells, shape, self.position.device, self.position.dtype)

    def expand(self, rank: int, start: str) -> Tensor:
        """(N, k) where each of a block's N positions starts: its first token, or its own."""
        tokens = self.levels.values[rank]
        device, dtype = self.position.device, self.position.dtype
        if start == "first":
            return first_cell(tokens, self.cells[0] * self.cells[1], device, dtype)
        return resample_matrix(grid(tokens, *self.cells), self.cells, device, dtype)

    def table(self, num_blocks: int) -> Tensor:
        """(T · sum of the levels, D) places of all tokens: block by block, level by level."""
        positions = self.blocks(num_blocks).unflatten(0, (num_blocks, -1))  # (T, N, D)
        parts = [
            self.pool(rank) @ positions + self.level_embedding[rank]
            for rank in range(len(self.levels))
        ]
        table = torch.cat(parts, 1)  # (T, sum of the levels, D)
        return (table if self.token_position is None else table + self.token_position).flatten(0, 1)


class VideoTokenizer(
    nn.Module,
    Pretrained,
    pipeline_tag="video-to-video",
    coders={  # how config.json carries the typed config
        TokenizerConfig: (
            lambda config: config.model_dump(mode="json"),
            lambda data: TokenizerConfig.model_validate(data),
        )
    },
):
    """Clips (B, 3, F, H, W) in [−1, 1] to packed ids and back (method section 2)."""

    output_layers = ("patch_head",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        config = TokenizerConfig.model_validate(config)  # a plain dict when read from config.json
        self.config = config
        self.levels = Levels(tuple(config.levels))
        frames, rows, columns = config.patch
        height, width = sides(config.size)
        for name, total, part in (
            ("num_frames", config.num_frames, frames),
            ("size", height, rows),
            ("size", width, columns),
        ):
            if total % part:
                raise EvatokError(f"{name} {total} is not divisible by the patch's {part}")
        self.num_blocks = config.num_frames // frames
        self.cells = (height // rows, width // columns)
        self.num_cells = self.cells[0] * self.cells[1]
        patch_dim = 3 * frames * rows * columns
        enc, dec = config.encoder.width, config.decoder.width
        places = (self.levels, self.num_blocks, self.cells)

        self.patch_in = nn.Linear(patch_dim, enc)
        self.encoder_places = PositionEmbedding(*places, enc, config.token_positions)
        self.query_map = nn.Linear(enc, enc)
        self.encoder = QFormer(config.encoder)
        self.code_in = nn.Linear(enc, config.code_dim)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.code_dim, config.entropy_temperature
        )
        self.code_out = nn.Linear(config.code_dim, dec)
        self.decoder_places = PositionEmbedding(*places, dec, config.token_positions)
        self.start_map = nn.Linear(dec, dec)
        self.decoder = QFormer(config.decoder)
        self.patch_head = nn.Linear(dec, patch_dim)
        self.is_compiled = False  # while it trains, see `compile_parts`
        for linear in (self.query_map, self.start_map):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def patches(self, clips: Tensor) -> Tensor:
        """(B, 3, F, H, W) → (B, T · N, patch voxels)."""
        frames, rows, columns = self.config.patch
        return rearrange(
            clips,
            "b c (t f) (h r) (w s) -> b (t h w) (f r s c)",
            f=frames,
            r=rows,
            s=columns,
        )

    def pixels(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`, for any number of blocks."""
        frames, rows, columns = self.config.patch
        height, width = self.cells
        return rearrange(
            patches,
            "b (t h w) (f r s c) -> b c (t f) (h r) (w s)",
            h=height,
            w=width,
            f=frames,
            r=rows,
            s=columns,
        )

    def check(self, clips: Tensor, assignment: Tensor) -> None:
        """Refuse clips and assignments that do not fit this model or each other."""
        patch_frames, (height, width) = self.config.patch[0], sides(self.config.size)
        if clips.ndim != 5 or clips.shape[1] != 3 or tuple(clips.shape[3:]) != (height, width):
            raise EvatokError(f"clips {tuple(clips.shape)} are not (B, 3, F, {height}, {width})")
        blocks, rest = divmod(clips.shape[2], patch_frames)
        if rest or not 1 <= blocks <= self.num_blocks:
            raise EvatokError(
                f"{clips.shape[2]} frames are not 1 to {self.num_blocks} blocks of {patch_frames}"
            )
        if tuple(assignment.shape) != (len(clips), blocks):
            raise EvatokError(
                f"assignment {tuple(assignment.shape)} does not fit {len(clips)} clips of "
                f"{blocks} blocks"
            )

    def _queries(self, embeddings: Tensor, blocks: BlockLevels) -> Tensor:
        """1D queries (L, D) pooled from 3D embeddings (B, T · N, D), clips sorted."""
        num_blocks = embeddings.shape[1] // self.num_cells
        cells = reordered(embeddings.unflatten(1, (num_blocks, -1)).flatten(0, 1), *blocks.blocks)
        pooled = [
            (self.encoder_places.pool(rank) @ part).flatten(0, 1)
            for rank, part in zip(blocks.ranks, cells.split(blocks.sizes), strict=True)
        ]
        rows = reordered(torch.cat(pooled), *reversed(blocks.rows))  # (L, D)
        places = F.embedding(blocks.level_rows, self.encoder_places.table(num_blocks))
        return self.query_map(rows) + places

    def _starts(self, tokens: Tensor, blocks: BlockLevels, num_blocks: int) -> Tensor:
        """3D queries (B, T · N, D) from 1D tokens (L, D), clips sorted."""
        counts = [self.levels.values[rank] for rank in blocks.ranks]
        rows = reordered(tokens, *blocks.rows)
        lengths = [size * count for size, count in zip(blocks.sizes, counts, strict=True)]
        starts = [
            self.decoder_places.expand(rank, self.config.decoder_start)
            @ part.unflatten(0, (-1, count))
            for rank, count, part in zip(blocks.ranks, counts, rows.split(lengths), strict=True)
        ]
        x = reordered(torch.cat(starts), *reversed(blocks.blocks))  # (B · T, N, D)
        x = x.unflatten(0, (-1, num_blocks)).flatten(1, 2)
        return self.start_map(x) + self.decoder_places.blocks(num_blocks)

    def _sides(self, groups: ClipGroups) -> Sides | None:
        """1D and 3D rows as attention of the whole batch needs them, or None: group by group."""
        if not (self.is_compiled and self.training):
            return None
        if cpu_layer.is_for([*self.encoder.layers, *self.decoder.layers], groups.order.device):
            counts = groups.counts
            cells = torch.full_like(counts, self.num_cells)
            return BlockEnds.from_counts(counts), BlockEnds.from_counts(cells)
        return groups.tokens, groups.grid(self.num_cells)

    def compile_parts(self) -> None:
        """From now on train with compiled layers, quantizer and ends (`train.compile`)."""
        self.is_compiled = self.quantizer.is_compiled = True

    def freeze_encoder(self) -> None:
        """Give no gradient to what decides the tokens: the encoder's parts and the codebook."""
        for part in (
            self.patch_in,
            self.encoder_places,
            self.query_map,
            self.encoder,
            self.code_in,
        ):
            part.requires_grad_(False)
        self.quantizer.requires_grad_(False)

    def _encode(self, clips: Tensor, groups: ClipGroups) -> Tensor:
        """Unquantized code vectors (L, code_dim), clips sorted by `groups.order`."""
        patches = self.patches(clips.to(self.patch_in.weight.dtype))
        embeddings = reordered(self.patch_in(patches), groups.order, groups.back)  # (B, T·N, D)
        num_blocks = embeddings.shape[1] // self.num_cells
        references = embeddings + self.encoder_places.blocks(num_blocks)
        cells, sides = self.num_cells, self._sides(groups)
        x, _ = self.encoder.forward_features(
            self._queries(embeddings, groups.by_level(self.levels)),
            references.flatten(0, 1),
            lambda q, k, v: groups.attend(q, k, v, cells, "1d-1d"),
            lambda q, k, v: groups.attend(q, k, v, cells, "1d-3d"),
            sides=sides,
        )
        return self.code_in(x)

    def _decode(
        self, codes: Tensor, groups: ClipGroups, feature_layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Pixels (B, 3, F, H, W), in the batch's order, of codes (L, code_dim), sorted.

        And, likewise, what comes out of decoder layer `feature_layer`, (B, T · N, D).
        """
        num_blocks, blocks = groups.counts.shape[1], groups.by_level(self.levels)
        tokens = self.code_out(codes.to(self.code_out.weight.dtype))  # (L, D)
        places = F.embedding(blocks.level_rows, self.decoder_places.table(num_blocks))
        cells, sides = self.num_cells, self._sides(groups)
        x, features = self.decoder.forward_features(
            self._starts(tokens, blocks, num_blocks).flatten(0, 1),
            tokens + places,
            lambda q, k, v: groups.attend(q, k, v, cells, "3d-3d"),
            lambda q, k, v: groups.attend(q, k, v, cells, "3d-1d"),
            feature_layer,
            None if sides is None else cast(Sides, (sides[1], sides[0])),
        )
        pixels = self.pixels(self.patch_head(groups.in_batch_order(x)))
        return pixels, None if features is None else groups.in_batch_order(features)

    def forward(
        self, clips: Tensor, assignment: Tensor, feature_layer: int | None = None
    ) -> Reconstruction:
        """Encode, quantize and decode.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1], F = 4 T, T at most `num_blocks`.
            assignment: (B, T) int64, each one of the levels.
            feature_layer: decoder layer, from 1, whose output is wanted as `features`.
        """
        self.check(clips, assignment)
        groups = ClipGroups.from_assignment(assignment)
        quantized = self.quantizer(self._encode(clips, groups))
        decoded, features = self._decode(quantized.codes, groups, feature_layer)
        rows = groups.rows_in_batch_order()
        return Reconstruction(
            clips=decoded,
            tokens=Tokens(quantized.ids[rows], assignment),
            quantized=quantized,
            units=quantized.unit.detach()[rows],
            features=None if features is None else features.unflatten(1, (-1, *self.cells)),
        )

    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        """Encode clips into codebook ids.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1], F = 4 T, T at most `num_blocks`.
            assignment: (B, T) int64, each one of the levels.

        Returns:
            Tokens, packed over the batch in the order of the clips.
        """
        self.check(clips, assignment)
        groups = ClipGroups.from_assignment(assignment)
        codes = F.normalize(self._encode(clips, groups).float(), dim=-1)
        return Tokens(self.quantizer.nearest(codes)[groups.rows_in_batch_order()], assignment)

    def decode(self, tokens: Tokens) -> Tensor:
        """Pixels of tokens, from ids alone.

        Returns:
            (B, 3, 4 T, H, W) float, not clamped.
        """
        groups = ClipGroups.from_assignment(tokens.assignment)
        sorted_ids = torch.empty_like(tokens.ids)
        sorted_ids[groups.rows_in_batch_order()] = tokens.ids
        return self._decode(self.quantizer.lookup(sorted_ids), groups)[0]
