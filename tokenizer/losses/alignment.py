"""Representation alignment with a frozen video encoder (method section 3, L_align).

The output of a decoder layer, place by place, goes through φ, an MLP and a linear "depatchify",
and should point where the teacher's features of the clip point. φ is trained with the tokenizer
and saved in its checkpoints, but is no part of it: what is exported is the tokenizer alone.

The paper names V-JEPA 2-L, λ = 0.7, MLP + depatchify and cosine; that φ is width → 4 w → 4 w → C
with SiLU, and the third decoder layer, are of the authors' earlier image tokenizer (GigaTok).

Shape letters: B batch, T H W cells of the decoder's grid, T' H' W' of the teacher's, D width,
C the teacher's channels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from evaluation.encoders.encoder import EncoderConfig, EncoderName, Grid, VideoEncoder
from evaluation.encoders.load import load_encoder
from evatok.core.errors import EvatokError
from tokenizer.model import Reconstruction, VideoTokenizer

logger = logging.getLogger(__name__)


class AlignmentConfig(EncoderConfig):
    """Alignment of the decoder with an encoder. Weight 0 = nothing is loaded, built or run."""

    encoder: EncoderName = "vjepa2-l"
    path: Path | None = None
    weight: float = Field(default=0.0, ge=0)  # λ; the paper's is 0.7
    layer: int = Field(default=3, ge=1)  # of the decoder, from 1: its output is what is aligned
    teacher_layer: int | None = Field(default=None, ge=1)  # null = the last
    # Where the teacher's grid is no multiple of the decoder's: "depatchify" refuses, "resample"
    # brings the teacher's features to the decoder's cells along those axes, trilinearly.
    match: Literal["depatchify", "resample"] = "depatchify"


def matched(teacher: Grid, student: Grid, match: str) -> tuple[Grid, Grid]:
    """Fitting of two grids of the same clip, axis by axis.

    Args:
        teacher: T', H', W'.
        student: T, H, W.
        match: see `AlignmentConfig`.

    Returns:
        The teacher's grid after resampling, and the cells that a student's place emits along each
        axis; their product with `student` is the former.

    Raises:
        EvatokError: "depatchify", and an axis of the teacher's is no multiple.
    """
    fits = [t % s == 0 for t, s in zip(teacher, student, strict=True)]
    if match == "depatchify" and not all(fits):
        raise EvatokError(
            f"the teacher's grid {_by(teacher)} is no multiple of the decoder's {_by(student)}: "
            "set match: resample, or choose another encoder, layer or size"
        )
    kept = [t if fit else s for t, s, fit in zip(teacher, student, fits, strict=True)]
    grid: Grid = (kept[0], kept[1], kept[2])
    return grid, (grid[0] // student[0], grid[1] // student[1], grid[2] // student[2])


def _by(grid: Grid) -> str:
    return " × ".join(map(str, grid))


class AlignmentHead(nn.Module):
    """φ: (B, T, H, W, D) → (B, r T, s H, u W, C)."""

    output_layers = ("depatchify_head",)

    def __init__(self, width: int, channels: int, cells: Grid) -> None:
        """Make φ.

        Args:
            width: D.
            channels: C.
            cells: r, s, u, the cells that a place emits; (1, 1, 1) needs no depatchify.
        """
        super().__init__()
        self.cells = cells
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_mid = nn.Linear(4 * width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, channels)
        count = cells[0] * cells[1] * cells[2]
        self.depatchify_head = nn.Linear(channels, count * channels) if count > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        """Predict the teacher's features from the decoder's."""
        x = self.mlp_out(F.silu(self.mlp_mid(F.silu(self.mlp_in(features)))))
        if self.depatchify_head is None:
            return x
        r, s, u = self.cells
        return rearrange(
            self.depatchify_head(x),
            "b t h w (r s u c) -> b (t r) (h s) (w u) c",
            r=r,
            s=s,
            u=u,
        )


class AlignedTokenizer(nn.Module):
    """A tokenizer and its φ, trained together."""

    def __init__(self, tokenizer: VideoTokenizer, head: AlignmentHead, layer: int) -> None:
        super().__init__()
        self.tokenizer, self.alignment, self.layer = tokenizer, head, layer

    def forward(self, clips: Tensor, assignment: Tensor) -> Reconstruction:
        """As the tokenizer's, and with φ's prediction (B, T', H', W', C) as `features`."""
        result = self.tokenizer(clips, assignment, feature_layer=self.layer)
        return replace(result, features=self.alignment(result.features))


def tokenizer_of(model: nn.Module) -> VideoTokenizer:
    """The tokenizer in what a stage trains, without the parts that only training needs."""
    inner = model.tokenizer if isinstance(model, AlignedTokenizer) else model
    assert isinstance(inner, VideoTokenizer)
    return inner


@dataclass(frozen=True)
class Teacher:
    """The frozen side of the alignment: what φ should predict.

    Attributes:
        encoder: the network.
        layer: of it.
        grid: T', H', W' after `matched`.
        cells: that a place of the decoder emits, see `matched`.
        channels: C.
    """

    encoder: VideoEncoder
    layer: int
    grid: Grid
    cells: Grid
    channels: int

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, T', H', W', C) float32 of clips (B, 3, F, H, W) in [−1, 1]."""
        (features,) = self.encoder.hidden(clips, [self.layer])
        features = features.float()
        if tuple(features.shape[1:4]) != self.grid:
            features = F.interpolate(
                features.movedim(-1, 1), self.grid, mode="trilinear", align_corners=False
            ).movedim(1, -1)
        return features


def make_teacher(config: AlignmentConfig, num_frames: int, student: Grid) -> Teacher:
    """Load the encoder and fit its grid to the decoder's T, H, W.

    Raises:
        EvatokError: the grids cannot be fitted as the settings ask, or there is no such layer.
        FileNotFoundError: the encoder's weights are not here.
        ImportError: a package that it needs is not installed.
    """
    encoder = load_encoder(config)
    layer = encoder.num_layers if config.teacher_layer is None else config.teacher_layer
    found = encoder.grid(layer, num_frames)
    grid, cells = matched(found, student, config.match)
    resampled = "" if grid == found else f", resampled to {_by(grid)}"
    logger.info(
        "alignment: decoder layer %d (%s cells) with %s layer %d (%s cells%s); %s cells a place",
        *(config.layer, _by(student), encoder.name, layer, _by(found), resampled, _by(cells)),
    )
    return Teacher(encoder, layer, grid, cells, encoder.width(layer))


def align(tokenizer: VideoTokenizer, teacher: Teacher, layer: int) -> AlignedTokenizer:
    """Join a tokenizer with a new φ for this teacher.

    Raises:
        EvatokError: the decoder has no such layer.
    """
    decoder = tokenizer.config.decoder
    if layer > decoder.layers:
        raise EvatokError(f"alignment.layer {layer}: the decoder has layers 1 to {decoder.layers}")
    head = AlignmentHead(decoder.width, teacher.channels, teacher.cells)
    return AlignedTokenizer(tokenizer, head, layer)


def alignment_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine over all places, in float32: −1 where they agree.

    Args:
        predicted: (B, T', H', W', C), of φ.
        target: likewise, of the teacher.
    """
    if predicted.shape != target.shape:
        raise EvatokError(f"φ gives {tuple(predicted.shape)}, the teacher {tuple(target.shape)}")
    return -F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()
