"""What only a tokenizer's training holds: φ, the discriminator, and the frozen networks they see.

Sizes follow from published shapes, so that no weights need be at hand.

Shape letters: T' H' W' cells of an encoder's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.efficientnet import EfficientNetLite0
from evaluation.features.encoder import EncoderConfig, Grid, VideoEncoder
from evaluation.features.load import load_encoder
from evaluation.lpips import VGG16
from tokenizer.adversarial import Adversary
from tokenizer.alignment import AlignmentHead, matched
from tokenizer.discriminator import PatchDiscriminatorConfig
from tokenizer.semantic import SemanticDiscriminator
from tokenizer.stages import TokenizerTraining


@dataclass(frozen=True)
class Shape:
    """A video transformer by its published sizes; stands in for one whose weights are not read.

    Attributes:
        name: as in `EncoderConfig.encoder`.
        num_layers: of it.
        channels: of every layer.
        tube: frames × rows × columns of a cell.
        size: pixels of a side.
        parameters: all of them.
    """

    name: str
    num_layers: int
    channels: int
    tube: Grid
    size: int
    parameters: int
    checksum: str = ""

    def grid(self, layer: int, num_frames: int) -> Grid:
        """See `VideoEncoder`."""
        frames, rows, columns = self.tube
        return num_frames // frames, self.size // rows, self.size // columns

    def width(self, layer: int) -> int:
        """See `VideoEncoder`."""
        return self.channels

    def hidden(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Never: it has no weights."""
        raise NotImplementedError(f"{self.name} is only a shape here")


SHAPES = {
    "vjepa2-l": Shape("vjepa2-l", 24, 1024, (2, 16, 16), 256, 303_885_312),
    "videomae": Shape("videomae", 12, 768, (2, 16, 16), 224, 86_225_664),
}


def encoder_of(config: EncoderConfig) -> VideoEncoder:
    """The encoder's shape, or the encoder itself where its weights are shipped or fetched."""
    return SHAPES.get(config.encoder) or load_encoder(config)


def training_only(config: TokenizerTraining) -> list[dict[str, Any]]:
    """A row for each part that is no part of the tokenizer.

    Args:
        config: of a proxy or final tokenizer.

    Returns:
        JSON-able {part, parameters, trained}; parts of weight 0 are not there.
    """
    rows: list[dict[str, Any]] = []

    def add(part: str, parameters: int, trained: bool = False) -> None:
        rows.append({"part": part, "parameters": parameters, "trained": trained})

    model = config.model
    frozen: dict[str, VideoEncoder] = {}
    if config.alignment.weight:
        encoder = frozen[config.alignment.encoder] = encoder_of(config.alignment)
        layer = config.alignment.teacher_layer or encoder.num_layers
        frames, height, width = model.patch
        student = (model.num_frames // frames, model.size // height, model.size // width)
        grid = encoder.grid(layer, model.num_frames)
        _, cells = matched(grid, student, config.alignment.match)
        with torch.device("meta"):
            head = AlignmentHead(model.decoder.width, encoder.width(layer), cells)
        add("alignment head φ", _count(head), True)
    if config.adversarial.weight:
        settings = config.adversarial.discriminator
        if isinstance(settings, PatchDiscriminatorConfig):
            with torch.device("meta"):
                judge: nn.Module = Adversary(config.adversarial, model.num_frames, model.size)
        else:
            encoder = frozen[settings.encoder] = encoder_of(settings)
            with torch.device("meta"):
                judge = SemanticDiscriminator(settings, encoder)
        add(f"discriminator, {settings.kind}", _count(judge), True)
    for name, encoder in frozen.items():
        add(f"{name}, frozen", _size_of(encoder))
    if config.loss.perceptual.weight:
        with torch.device("meta"):
            net = VGG16() if config.loss.perceptual.network == "lpips" else EfficientNetLite0()
        add(f"{config.loss.perceptual.network}, frozen", _count(net))
    return rows


def _size_of(encoder: VideoEncoder) -> int:
    if isinstance(encoder, Shape):
        return encoder.parameters
    net: Any = encoder
    return _count(net.model)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
