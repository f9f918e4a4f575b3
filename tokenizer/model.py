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
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from tokenizer.assignment import Levels, grid
from tokenizer.masks import ClipGroups
from tokenizer.qformer import QFormer, QFormerConfig
from tokenizer.quantizer import Quantized, VectorQuantizer
from tokenizer.tokens import Tokens
from training.config import Config


class TokenizerConfig(Config):
    """Everything that fixes the tokenizer's weights and shapes."""

    levels: tuple[int, ...]
    num_frames: int = 16
    size: int = 128
    patch: tuple[int, int, int] = (4, 8, 8)  # frames, rows, columns
    encoder: QFormerConfig
    decoder: QFormerConfig
    codebook_size: int = 16_384
    code_dim: int = 8
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
        features: (B, T, H, W, D) of the tapped decoder layer, cells of the patch grid; None
            where none was asked for.
    """

    clips: Tensor
    tokens: Tokens
    quantized: Quantized
    units: Tensor
    features: Tensor | None = None


@lru_cache(maxsize=256)
def resample_matrix(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Linear map from a grid to another: area means when shrinking, bilinear otherwise.

    Args:
        source: rows and columns.
        target: rows and columns.

    Returns:
        (target cells, source cells) float32, rows add up to 1. Cached: do not write into it.
    """
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
        values = torch.cat([angles.sin(), angles.cos()], -1)  # (size, axis_width)
        shape = [1, 1, 1, axis_width]
        shape[axis] = size
        table[..., axis * axis_width : (axis + 1) * axis_width] = values.view(shape)
    return table.view(-1, width)


class Places(nn.Module):
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
        return resample_matrix(self.cells, shape).to(self.position.device)

    def spread(self, rank: int, start: str) -> Tensor:
        """(N, k) where each of a block's N positions starts: its first token, or its own."""
        tokens = self.levels.values[rank]
        if start == "first":
            matrix = torch.zeros(self.cells[0] * self.cells[1], tokens)
            matrix[:, 0] = 1
        else:
            matrix = resample_matrix(grid(tokens, *self.cells), self.cells)
        return matrix.to(self.position.device)


class VideoTokenizer(
    nn.Module,
    PyTorchModelHubMixin,
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
        for name, total, part in (
            ("num_frames", config.num_frames, frames),
            ("size", config.size, rows),
            ("size", config.size, columns),
        ):
            if total % part:
                raise ValueError(f"{name} {total} is not divisible by the patch's {part}")
        self.num_blocks = config.num_frames // frames
        self.cells = (config.size // rows, config.size // columns)
        self.num_cells = self.cells[0] * self.cells[1]
        patch_dim = 3 * frames * rows * columns
        enc, dec = config.encoder.width, config.decoder.width
        places = (self.levels, self.num_blocks, self.cells)

        self.patch_in = nn.Linear(patch_dim, enc)
        self.encoder_places = Places(*places, enc, config.token_positions)
        self.query_map = nn.Linear(enc, enc)
        self.encoder = QFormer(config.encoder)
        self.code_in = nn.Linear(enc, config.code_dim)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.code_dim, config.entropy_temperature
        )
        self.code_out = nn.Linear(config.code_dim, dec)
        self.decoder_places = Places(*places, dec, config.token_positions)
        self.start_map = nn.Linear(dec, dec)
        self.decoder = QFormer(config.decoder)
        self.patch_head = nn.Linear(dec, patch_dim)
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
        patch_frames, size = self.config.patch[0], self.config.size
        if clips.ndim != 5 or clips.shape[1] != 3 or tuple(clips.shape[3:]) != (size, size):
            raise ValueError(f"clips {tuple(clips.shape)} are not (B, 3, F, {size}, {size})")
        blocks, rest = divmod(clips.shape[2], patch_frames)
        if rest or not 1 <= blocks <= self.num_blocks:
            raise ValueError(
                f"{clips.shape[2]} frames are not 1 to {self.num_blocks} blocks of {patch_frames}"
            )
        if tuple(assignment.shape) != (len(clips), blocks):
            raise ValueError(
                f"assignment {tuple(assignment.shape)} does not fit {len(clips)} clips of "
                f"{blocks} blocks"
            )

    def _places(self, places: Places, lengths: tuple[int, ...]) -> Tensor:
        ranks = self.levels.ranks(torch.tensor(lengths)).tolist()
        return torch.cat([places.of_block(t, r) for t, r in enumerate(ranks)])  # (Q, D)

    def _queries(self, embeddings: Tensor, groups: ClipGroups) -> Tensor:
        """1D queries (L, D) pooled from 3D embeddings (B, T · N, D), clips sorted."""
        out = []
        parts = embeddings.split(groups.sizes)
        for group, lengths in zip(parts, groups.assignments, strict=True):
            ranks = self.levels.ranks(torch.tensor(lengths)).tolist()
            blocks = group.split(self.num_cells, 1)
            pooled = [
                self.encoder_places.pool(rank) @ block
                for rank, block in zip(ranks, blocks, strict=True)
            ]
            queries = self.query_map(torch.cat(pooled, 1))  # (b, Q, D)
            out.append((queries + self._places(self.encoder_places, lengths)).flatten(0, 1))
        return torch.cat(out)

    def _encode(self, clips: Tensor, groups: ClipGroups) -> Tensor:
        """Unquantized code vectors (L, code_dim), clips sorted by `groups.order`."""
        embeddings = self.patch_in(self.patches(clips[groups.order]))  # (B, T·N, D)
        num_blocks = embeddings.shape[1] // self.num_cells
        references = embeddings + self.encoder_places.blocks(num_blocks)
        cells = self.num_cells
        x = self.encoder(
            self._queries(embeddings, groups),
            references.flatten(0, 1),
            lambda q, k, v: groups.attend(q, k, v, cells, "1d-1d"),
            lambda q, k, v: groups.attend(q, k, v, cells, "1d-3d"),
        )
        return self.code_in(x)

    def _decode(
        self, codes: Tensor, groups: ClipGroups, tap: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Pixels (B, 3, F, H, W) of codes (L, code_dim), both sorted by `groups.order`.

        And, likewise sorted, what comes out of decoder layer `tap`, (B, T · N, D).
        """
        tokens = self.code_out(codes)  # (L, D)
        references, queries = [], []
        sizes = zip(groups.sizes, groups.assignments, strict=True)
        parts = tokens.split([size * sum(lengths) for size, lengths in sizes])
        for part, size, lengths in zip(parts, groups.sizes, groups.assignments, strict=True):
            rows = part.unflatten(0, (size, -1))
            references.append((rows + self._places(self.decoder_places, lengths)).flatten(0, 1))
            queries.append(self._starts(rows, lengths).flatten(0, 1))
        cells = self.num_cells
        x, tapped = self.decoder.tapped(
            torch.cat(queries),
            torch.cat(references),
            lambda q, k, v: groups.attend(q, k, v, cells, "3d-3d"),
            lambda q, k, v: groups.attend(q, k, v, cells, "3d-1d"),
            tap,
        )
        by_clip = (sum(groups.sizes), -1)
        pixels = self.pixels(self.patch_head(x).unflatten(0, by_clip))
        return pixels, None if tapped is None else tapped.unflatten(0, by_clip)

    def _starts(self, tokens: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """3D queries (b, T · N, D) of a group from its 1D tokens (b, Q, D)."""
        ranks = self.levels.ranks(torch.tensor(lengths)).tolist()
        starts = [
            self.decoder_places.spread(rank, self.config.decoder_start) @ block
            for rank, block in zip(ranks, tokens.split(lengths, 1), strict=True)
        ]
        return self.start_map(torch.cat(starts, 1)) + self.decoder_places.blocks(len(lengths))

    def forward(self, clips: Tensor, assignment: Tensor, tap: int | None = None) -> Reconstruction:
        """Encode, quantize and decode.

        Args:
            clips: (B, 3, F, H, W) float in [−1, 1], F = 4 T, T at most `num_blocks`.
            assignment: (B, T) int64, each one of the levels.
            tap: decoder layer, from 1, whose output is wanted as `features`.
        """
        self.check(clips, assignment)
        groups = ClipGroups.of(assignment)
        quantized = self.quantizer(self._encode(clips, groups))
        decoded, tapped = self._decode(quantized.codes, groups, tap)
        back, rows = torch.argsort(groups.order), groups.rows_in_batch_order()
        if tapped is not None:
            tapped = tapped[back].unflatten(1, (-1, *self.cells))
        return Reconstruction(
            clips=decoded[back],
            tokens=Tokens(quantized.ids[rows], assignment),
            quantized=quantized,
            units=quantized.unit.detach()[rows],
            features=tapped,
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
        groups = ClipGroups.of(assignment)
        codes = F.normalize(self._encode(clips, groups).float(), dim=-1)
        return Tokens(self.quantizer.nearest(codes)[groups.rows_in_batch_order()], assignment)

    def decode(self, tokens: Tokens) -> Tensor:
        """Pixels of tokens, from ids alone.

        Returns:
            (B, 3, 4 T, H, W) float, not clamped.
        """
        groups = ClipGroups.of(tokens.assignment)
        sorted_ids = torch.empty_like(tokens.ids)
        sorted_ids[groups.rows_in_batch_order()] = tokens.ids
        decoded, _ = self._decode(self.quantizer.lookup(sorted_ids), groups)
        return decoded[torch.argsort(groups.order)]
