"""The features of content-debiased FVD (Ge et al. 2024), from a file of the user's.

    evatok fvd real samples --features videomae-g:vit_g_hybrid_pt_1200e_ssv2_ft.pth

VideoMAE v2, ViT-g, fine-tuned on Something-Something v2: less taken by what single frames show than
I3D, more by motion. Its program cuts pixels off to bytes, resizes the whole frame to 224 × 224
bilinear without antialias, keeps [0, 1] as it is, and takes the mean of the last layer's tokens
through the final norm. The file is read as tensors only and must hold every layer in its shape; its
checksum stands in every record.

Shape letters: B batch, F frames, H W pixels, N tokens, D features, Hd heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.encoders.base import (
    OneByOne,
    resize_frames,
    weights_checksum,
)
from evaluation.encoders.i3d.tats import truncated
from evaluation.fetch import read_state, verified_state
from evatok.core.errors import EvatokError

NAME = "videomae-g"
FILE = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
GET = f"give {NAME}:FILE, mae-g/{FILE} of https://huggingface.co/OpenGVLab/InternVideoMAE_models"
EPSILON = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are those of the file.

    Attributes:
        dim: D.
        layers: how many.
        heads: Hd.
        hidden: width of a layer's two linear maps.
        patch: rows and columns of a token.
        tube: frames of a token.
        size: edge of the frames.
        frames: F, of every clip.
        classes: of the head, which is in the file and not used.
    """

    dim: int = 1408
    layers: int = 40
    heads: int = 16
    hidden: int = 6144
    patch: int = 14
    tube: int = 2
    size: int = 224
    frames: int = 16
    classes: int = 174

    @property
    def tokens(self) -> int:
        """N."""
        return self.frames // self.tube * (self.size // self.patch) ** 2

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a file must hold, by its name."""
        dim, hidden = self.dim, self.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (dim, 3, self.tube, self.patch, self.patch),
            "patch_embed.proj.bias": (dim,),
        }
        for n in range(self.layers):
            layer: dict[str, tuple[int, ...]] = {
                **{f"norm{i}.{leaf}": (dim,) for i in (1, 2) for leaf in ("weight", "bias")},
                "attn.q_bias": (dim,),
                "attn.v_bias": (dim,),
                "attn.qkv.weight": (3 * dim, dim),
                "attn.proj.weight": (dim, dim),
                "attn.proj.bias": (dim,),
                "mlp.fc1.weight": (hidden, dim),
                "mlp.fc1.bias": (hidden,),
                "mlp.fc2.weight": (dim, hidden),
                "mlp.fc2.bias": (dim,),
            }
            shapes |= {f"blocks.{n}.{name}": shape for name, shape in layer.items()}
        shapes |= {f"fc_norm.{leaf}": (dim,) for leaf in ("weight", "bias")}
        return shapes | {"head.weight": (self.classes, dim), "head.bias": (self.classes,)}


def positions(count: int, dim: int) -> Tensor:
    """Fixed sines and cosines (count, dim) float32: pairs of columns share a wavelength."""
    wave = 10_000 ** (torch.arange(dim, dtype=torch.float64) // 2 * 2 / dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] / wave
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()


class VideoMAEGFeatures(OneByOne):
    """The feature network `videomae-g`."""

    name = NAME

    def __init__(
        self,
        state: Mapping[str, Tensor],
        device: str | torch.device = "cpu",
        shape: Shape | None = None,
    ) -> None:
        """Take the tensors of `checked`; the shape is told for tests."""
        self.shape, self.device = shape or Shape(), torch.device(device)
        self.dim = self.shape.dim
        self.checksum = weights_checksum(state)
        self.weights = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.positions = positions(self.shape.tokens, self.shape.dim).to(self.device)

    def check_length(self, frames: int) -> None:
        """Refuse clips of other than 16 frames."""
        if frames != self.shape.frames:
            raise EvatokError(
                f"clips of {frames} frames: {NAME} takes {self.shape.frames}: "
                f"give --frames {self.shape.frames}"
            )

    def features(self, clips: Tensor) -> Tensor:
        """Features (B, D) of resized clips."""
        pixels = (truncated(clips) + 1) / 2
        x = self._embed(resize_frames(pixels, self.shape.size, antialias=False))
        for layer in range(self.shape.layers):
            x = self._layer(x, f"blocks.{layer}.")
        return self._norm(x.mean(1), "fc_norm")

    def _embed(self, pixels: Tensor) -> Tensor:
        shape, w = self.shape, self.weights
        x = F.conv3d(
            pixels,
            w["patch_embed.proj.weight"],
            w["patch_embed.proj.bias"],
            stride=(shape.tube, shape.patch, shape.patch),
        )  # (B, D, F', H', W')
        return x.flatten(2).transpose(1, 2) + self.positions  # (B, N, D)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)

    def _layer(self, x: Tensor, name: str) -> Tensor:
        of_q, of_v = (self.weights[f"{name}attn.{which}_bias"] for which in "qv")
        bias = torch.cat([of_q, torch.zeros_like(of_q), of_v])  # keys have none
        qkv = F.linear(self._norm(x, f"{name}norm1"), self.weights[f"{name}attn.qkv.weight"], bias)
        q, k, v = qkv.unflatten(-1, (3, self.shape.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, Hd, N, D / Hd)
        x = x + self._linear(mixed.transpose(1, 2).flatten(2), f"{name}attn.proj")
        hidden = self._linear(self._norm(x, f"{name}norm2"), f"{name}mlp.fc1")
        return x + self._linear(F.gelu(hidden), f"{name}mlp.fc2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def checked(
    state: Mapping[str, Tensor], where: str, shape: Shape | None = None
) -> dict[str, Tensor]:
    """The tensors of the network, float32.

    Args:
        state: as it lies in the file.
        where: for messages.
        shape: told for tests.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape, or not finite.
    """
    return verified_state(state, (shape or Shape()).tensors(), where, FILE, GET)


def load_videomae_g(
    path: str | Path | None, device: str | torch.device = "cpu"
) -> VideoMAEGFeatures:
    """The network from a file.

    Raises:
        EvatokError: no file is named.
        FileNotFoundError: it is not there.
        WeightsError: it holds anything but the tensors of the network.
    """
    if path is None:
        raise EvatokError(f"{NAME} needs its file; {GET}")
    return VideoMAEGFeatures(checked(read_state(Path(path), GET), str(path)), device)
