"""The semantic discriminator: a frozen video encoder, small trained heads (method section 3).

Features of several layers of a frozen VideoMAE go through one small head each, 1D convolutions
along the token sequence, to a real/fake logit a token. The paper says no more; that a head narrows
to its width, mixes neighbours in a residual convolution of kernel 9 with leaky ReLU, and normalises
in groups within a clip (never over a batch, which would mix real and fake) follows the habits of
projected discriminators.

Shape letters: B batch, F frames, H W pixels, N tokens of a layer, C its channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from evaluation.encoders.encoder import EncoderConfig, EncoderName, VideoEncoder, check_layers
from evaluation.encoders.load import load_encoder
from evatok.core.errors import EvatokError

SLOPE = 0.2  # of the leaky ReLU


class SemanticDiscriminatorConfig(EncoderConfig):
    """Encoder and heads."""

    kind: Literal["semantic"] = "semantic"
    encoder: EncoderName = "videomae"
    layers: tuple[int, ...] = (3, 6, 9, 12)  # of the encoder, from 1; one head each
    width: int = Field(default=256, ge=1)  # of a head
    kernel: int = Field(default=9, ge=1)  # tokens that a residual convolution sees; odd
    blocks: int = Field(default=1, ge=0)  # residual convolutions of a head
    norm: Literal["group", "none"] = "group"
    groups: int = Field(default=32, ge=1)  # of the norm; a divisor of `width`
    spectral_norm: bool = True

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers or len(set(layers)) < len(layers) or min(layers) < 1:
            raise EvatokError(f"{layers} should be distinct layers, from 1")
        return layers

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise EvatokError(f"{kernel} should be odd: a token looks equally far both ways")
        return kernel


class Head(nn.Module):
    """Logits (B, N) of one layer's tokens (B, C, N)."""

    def __init__(self, channels: int, config: SemanticDiscriminatorConfig) -> None:
        super().__init__()
        width, self.has_norm = config.width, config.norm == "group"
        if self.has_norm and width % config.groups:
            raise EvatokError(f"width {width} is not divisible by groups {config.groups}")

        def convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
            conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
            return parametrizations.spectral_norm(conv) if config.spectral_norm else conv

        def norm() -> nn.Module:
            return nn.GroupNorm(config.groups, width) if self.has_norm else nn.Identity()

        # the scale of features differs by orders of magnitude between layers and encoders
        self.norm_in = nn.GroupNorm(1, channels) if self.has_norm else nn.Identity()
        self.narrow, self.norm = convolution(channels, width, 1), norm()
        self.mix = nn.ModuleList(
            convolution(width, width, config.kernel) for _ in range(config.blocks)
        )
        self.norms = nn.ModuleList(norm() for _ in range(config.blocks))
        self.logit_head = convolution(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens."""
        x = F.leaky_relu(self.norm(self.narrow(self.norm_in(x))), SLOPE)  # (B, width, N)
        for mix, norm in zip(self.mix, self.norms, strict=True):
            x = x + F.leaky_relu(norm(mix(x)), SLOPE)
        return self.logit_head(x).squeeze(1)


class SemanticDiscriminator(nn.Module):
    """Clips to logits; only the heads are trained, saved and averaged."""

    def __init__(self, config: SemanticDiscriminatorConfig, encoder: VideoEncoder | None = None):
        """Load the encoder and make the heads.

        Args:
            config: encoder and heads.
            encoder: that is loaded already, such as the teacher of the alignment.

        Raises:
            EvatokError: the encoder has no such layer.
            FileNotFoundError: its weights are not here.
            ImportError: a package that it needs is not installed.
        """
        super().__init__()
        self.config = config
        self.encoder = load_encoder(config) if encoder is None else encoder  # no nn.Module
        check_layers(self.encoder, config.layers)
        self.heads = nn.ModuleList(
            Head(self.encoder.width(layer), config) for layer in config.layers
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Real/fake logits.

        Args:
            clips: (B, 3, F, H, W) float around [−1, 1]; gradients reach them.

        Returns:
            (B, N): of every token of every layer, one layer behind the other.
        """
        features = self.encoder.hidden(clips, self.config.layers)
        tokens = [x.flatten(1, 3).transpose(1, 2) for x in features]  # (B, C, N)
        return torch.cat([head(x) for head, x in zip(self.heads, tokens, strict=True)], 1)
