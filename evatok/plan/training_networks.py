"""Networks needed only for training: alignment head, discriminator, frozen encoders.

Sizes follow from published shapes, so that no weights need be at hand.

Shape letters: T' H' W' cells of an encoder's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evaluation.encoders.encoder import EncoderConfig, Grid, VideoEncoder
from evaluation.encoders.load import load_encoder
from evaluation.perceptual.efficientnet import EfficientNetLite0
from evaluation.perceptual.lpips import VGG16
from tokenizer.losses.adversarial import Adversary
from tokenizer.losses.alignment import AlignmentHead, matched
from tokenizer.losses.patch_discriminator import PatchDiscriminatorConfig
from tokenizer.losses.semantic_discriminator import SemanticDiscriminator
from tokenizer.training.tokenizer_stage import TokenizerTraining
from video.clips import sides


@dataclass(frozen=True)
class Shape:
    """A video transformer by its published sizes; stands in for one whose weights are not read.

    Attributes:
        name: as in `EncoderConfig.encoder`.
        num_layers: of it.
        channels: of every layer.
        tubelet: frames × rows × columns of a cell.
        size: pixels of a side.
        parameters: all of them.
    """

    name: str
    num_layers: int
    channels: int
    tubelet: Grid
    size: int
    parameters: int
    checksum: str = ""

    def grid(self, layer: int, num_frames: int) -> Grid:
        """See `VideoEncoder`."""
        frames, rows, columns = self.tubelet
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


def training_only_flops(config: TokenizerTraining) -> dict[str, int]:
    """Operations of a clip in a step, by part; none of what has weight 0.

    A frozen network is run forward, and backward to its input where a gradient passes; what is
    trained is run backward to its weights too. The discriminator plays in every step.
    """
    model, out = config.model, {}
    clips = torch.zeros(1, 3, model.num_frames, *sides(model.size), device="meta")
    perceptual = config.loss.perceptual
    if perceptual.weight:
        frames = min(perceptual.frames or model.num_frames, model.num_frames)
        once = perceptual_flops(perceptual.network, frames, sides(model.size))
        out[perceptual.network] = 3 * once  # both sides forward, one backward
    if config.alignment.weight:
        encoder = encoder_of(config.alignment)
        layer = config.alignment.teacher_layer or encoder.num_layers
        out["alignment"] = _encoder_flops(encoder, layer, clips)
        (head,) = (r for r in training_only(config) if r["part"] == "alignment head φ")
        cells = model.num_frames * math.prod(sides(model.size))
        for edge in model.patch:
            cells //= edge
        out["alignment"] += 3 * 2 * head["parameters"] * cells
    if config.adversarial.weight:
        settings = config.adversarial.discriminator
        if isinstance(settings, PatchDiscriminatorConfig):
            with torch.device("meta"):
                discriminator = Adversary(config.adversarial, model.num_frames, model.size)
            out["discriminator"] = 8 * _counted(discriminator, clips)
        else:
            encoder, last = encoder_of(settings), max(settings.layers)
            out["discriminator"] = 4 * _encoder_flops(encoder, last, clips)
            with torch.device("meta"):
                heads = SemanticDiscriminator(settings, encoder).heads
            for head_, layer in zip(heads, settings.layers, strict=True):
                tokens = math.prod(encoder.grid(layer, model.num_frames))
                shape = torch.zeros(1, encoder.width(layer), tokens, device="meta")
                out["discriminator"] += 8 * _counted(head_, shape)
    return out


def perceptual_flops(network: str, num_frames: int, size: Sequence[int]) -> int:
    """Forward operations of a perceptual network on frames of a size [height, width]."""
    with torch.device("meta"):
        net = VGG16() if network == "lpips" else EfficientNetLite0()
    return _counted(net, torch.zeros(num_frames, 3, *size, device="meta"))


def _counted(net: nn.Module, x: Tensor) -> int:
    """Operations of a forward pass, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def _encoder_flops(encoder: VideoEncoder, layer: int, clips: Tensor) -> int:
    """Forward up to a layer: counted, or of plain transformer layers where only sizes are known."""
    if not isinstance(encoder, Shape):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder.hidden(torch.zeros_like(clips, device="cpu"), [layer])
        return counter.get_total_flops()
    tokens, width = math.prod(encoder.grid(layer, clips.shape[2])), encoder.channels
    return layer * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)


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
        height, width = sides(model.size)
        edges = zip((model.num_frames, height, width), model.patch, strict=True)
        student = cast(Grid, tuple(total // part for total, part in edges))
        grid = encoder.grid(layer, model.num_frames)
        _, cells = matched(grid, student, config.alignment.match)
        with torch.device("meta"):
            head = AlignmentHead(model.decoder.width, encoder.width(layer), cells)
        add("alignment head φ", _count(head), True)
    if config.adversarial.weight:
        settings = config.adversarial.discriminator
        if isinstance(settings, PatchDiscriminatorConfig):
            with torch.device("meta"):
                discriminator: nn.Module = Adversary(
                    config.adversarial, model.num_frames, model.size
                )
        else:
            encoder = frozen[settings.encoder] = encoder_of(settings)
            with torch.device("meta"):
                discriminator = SemanticDiscriminator(settings, encoder)
        add(f"discriminator, {settings.kind}", _count(discriminator), True)
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
