"""The Kinetics-400 I3D of the FVD paper, as a plain torch module, and how to get its weights.

Inception-v1 inflated to 3D (Carreira & Zisserman 2017; Unterthiner et al. 2018 for its use in FVD).
The features are the 400 logits, averaged over time, before the softmax. This is the TF-Hub network
`i3d-kinetics-400/1` from which the files of StyleGAN-V, LARP and AdapTok were converted too.

    python -m evaluation.encoders.i3d.network      # download, verify, convert once into the cache

What is pinned, because each choice moves the distance: BatchNorm ε = 1e-3 and no learned scale;
TF "SAME" padding, whose odd element goes behind; clips in [-1, 1] resized to 224 × 224 by torch's
bilinear interpolation with half-pixel centres, no antialias, aspect ignored; float32 throughout.

Shape letters: B batch, F frames, C channels, H W pixels, D = 400.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.encoders.base import (
    OneByOne,
    check_clips,
    resize_frames,
    weights_checksum,
)
from evaluation.encoders.encoder import Grid, check_layers
from evaluation.encoders.i3d import convolution
from evaluation.encoders.i3d.weights import main, read_weights

NUM_CLASSES = 400
SIZE = 224
MIN_FRAMES = 9  # three halvings leave the two steps that the last pool needs
BN_EPSILON = 1e-3


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind an axis under TF's "SAME" rule."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def conv3d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: list[int]) -> Tensor:
    """`F.conv3d` for inference, by oneDNN wherever it is there.

    For a single clip on a single thread torch prefers an im2col that is up to twice as slow.
    """
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, [stride] * 3, [1] * 3, 1)
    return F.conv3d(x, weight, bias, stride, padding)


class Unit(nn.Module):
    """Convolution with the BatchNorm folded into it, then ReLU: (B, C, F, H, W) → same layout."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._kept: tuple[object, convolution.Packed] | None = None

    def _packed(self) -> convolution.Packed:
        """The weights as the C code reads them, made anew when they have changed."""
        version = (self.weight.data_ptr(), self.weight._version, self.bias._version)
        if self._kept is None or self._kept[0] != version:
            self._kept = version, convolution.pack(self.weight, self.bias, self.stride)
        return self._kept[1]

    def forward(self, x: Tensor) -> Tensor:
        pads = [same_padding(n, self.kernel, self.stride) for n in x.shape[2:]]
        fronts = [front for front, _ in pads]
        if self.kernel > 1 and convolution.serves(x):
            time, rows, columns = (-(-n // self.stride) for n in x.shape[2:])
            return convolution.convolve(x, self._packed(), fronts, (time, rows, columns))
        if any(front != back for front, back in pads):
            x = F.pad(x, [p for pair in reversed(pads) for p in pair])
            fronts = [0, 0, 0]
        return conv3d(x, self.weight, self.bias, self.stride, fronts).relu_()


class Pool(nn.Module):
    """Max pooling under the "SAME" rule: (B, C, F, H, W) → (B, C, F', H', W').

    The inputs are never negative, so TF's zeros act like torch's −inf; the odd element behind
    is what `ceil_mode` adds.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(x.shape[2:], self.kernel, self.stride, strict=True)
        fronts = [same_padding(n, k, s)[0] for n, k, s in sizes]
        if self.kernel == (3, 3, 3) and self.stride == (1, 1, 1):  # 3 + 9 comparisons, not 27
            over_time = F.max_pool3d(x, (3, 1, 1), 1, (fronts[0], 0, 0))
            return F.max_pool3d(over_time, (1, 3, 3), 1, (0, fronts[1], fronts[2]))
        return F.max_pool3d(x, self.kernel, self.stride, fronts, ceil_mode=True)


class Mixed(nn.Module):
    """Inception block: four branches side by side, joined along the channels."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(inputs, b0, 1)
        self.b1a, self.b1b = Unit(inputs, b1a, 1), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(inputs, b2a, 1), Unit(b2a, b2b, 3)
        self.pool = Pool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(inputs, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)))
        return torch.cat((*branches, self.b3b(self.pool(x))), 1)


class I3D(nn.Module):
    """The network itself; `I3DFeatures` adds what happens to a clip before it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = [
            ("Conv3d_1a_7x7", Unit(3, 64, 7, 2)),
            ("MaxPool3d_2a_3x3", Pool((1, 3, 3), (1, 2, 2))),
            ("Conv3d_2b_1x1", Unit(64, 64, 1)),
            ("Conv3d_2c_3x3", Unit(64, 192, 3)),
            ("MaxPool3d_3a_3x3", Pool((1, 3, 3), (1, 2, 2))),
            ("Mixed_3b", Mixed(192, (64, 96, 128, 16, 32, 32))),
            ("Mixed_3c", Mixed(256, (128, 128, 192, 32, 96, 64))),
            ("MaxPool3d_4a_3x3", Pool((3, 3, 3), (2, 2, 2))),
            ("Mixed_4b", Mixed(480, (192, 96, 208, 16, 48, 64))),
            ("Mixed_4c", Mixed(512, (160, 112, 224, 24, 64, 64))),
            ("Mixed_4d", Mixed(512, (128, 128, 256, 24, 64, 64))),
            ("Mixed_4e", Mixed(512, (112, 144, 288, 32, 64, 64))),
            ("Mixed_4f", Mixed(528, (256, 160, 320, 32, 128, 128))),
            ("MaxPool3d_5a_2x2", Pool((2, 2, 2), (2, 2, 2))),
            ("Mixed_5b", Mixed(832, (256, 160, 320, 32, 128, 128))),
            ("Mixed_5c", Mixed(832, (384, 192, 384, 48, 128, 128))),
        ]
        for name, layer in layers:
            self.add_module(name, layer)
        self.layers = [name for name, _ in layers]
        self.logits = nn.Conv3d(1024, NUM_CLASSES, 1)

    def trunk(self, x: Tensor) -> Tensor:
        """`Mixed_5c` (B, 1024, F', 7, 7), F' = ⌈F / 8⌉, of clips as `forward` takes them."""
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 400), averaged over time, of clips (B, 3, F, 224, 224) in [-1, 1], F ≥ 9."""
        pooled = F.avg_pool3d(self.trunk(x), (2, 7, 7), 1)  # (B, 1024, F' - 1, 1, 1)
        return self.logits(pooled).mean((2, 3, 4))


def fold(weights: Mapping[str, Tensor], epsilon: float = BN_EPSILON) -> dict[str, Tensor]:
    """State of an `I3D` from tensors with BatchNorm apart (named as in `i3d_weights`)."""
    state = {}
    for name, weight in weights.items():
        layer, _, part = name.partition(".conv3d.")
        if part == "weight" and f"{layer}.bn.running_var" in weights:
            mean, variance, bias = (
                weights[f"{layer}.bn.{leaf}"].double()
                for leaf in ("running_mean", "running_var", "bias")
            )
            scale = (variance + epsilon).rsqrt()  # (O,)
            if f"{layer}.bn.weight" in weights:  # files of torch store one, all ones
                scale = scale * weights[f"{layer}.bn.weight"].double()
            state[f"{layer}.weight"] = (weight.double() * scale.view(-1, 1, 1, 1, 1)).float()
            state[f"{layer}.bias"] = (bias - mean * scale).float()
        elif part:
            state[f"{layer}.{part}"] = weight
    return state


class I3DFeatures(OneByOne):
    """The feature network `i3d`: clips of any size and at least 9 frames to 400 logits."""

    name = "i3d"
    dim = NUM_CLASSES
    epsilon = BN_EPSILON

    def __init__(self, weights: Mapping[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Take tensors named as in `i3d_weights`; `load_i3d` verifies them too."""
        self.checksum = weights_checksum(weights)
        self.device = torch.device(device)
        self.model = I3D().requires_grad_(False).eval()
        self.model.load_state_dict(fold(weights, self.epsilon))
        # Convolutions and, by far, the pools are faster on a CPU with the channels last.
        self.model.to(self.device)
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def features(self, clips: Tensor) -> Tensor:
        """Logits (B, 400) of resized clips."""
        return self.model(preprocess(clips))


def preprocess(clips: Tensor, size: int = SIZE) -> Tensor:
    """Resize every frame: (B, 3, F, H, W) → (B, 3, F, 224, 224), channels last in memory.

    Bilinear, half-pixel centres (`align_corners=False`), no antialias, aspect ignored, range
    untouched; 224 × 224 frames pass through as they are.
    """
    clips = resize_frames(clips, size, antialias=False)
    return clips.contiguous(memory_format=torch.channels_last_3d)


class I3DEncoder:
    """The same network as a `VideoEncoder`: layers 1 to 16 are those of `I3D.layers`, by order.

    Without the logits nothing ties it to 224 × 224: a smaller `size` is cheaper by its square.
    Layers that serve (cells for 16 frames at 224, and at 64): 7 `Mixed_3c` 8 × 28 × 28, 8 × 8 × 8;
    13 `Mixed_4f` 4 × 14 × 14, 4 × 4 × 4; 16 `Mixed_5c` 2 × 7 × 7, 2 × 2 × 2.
    """

    name = "i3d"

    def __init__(self, weights: Mapping[str, Tensor], size: int | None = None) -> None:
        """Take tensors as `I3DFeatures` does."""
        self.checksum = weights_checksum(weights)
        self.size = SIZE if size is None else size
        self.model = I3D().requires_grad_(False).eval()
        self.model.load_state_dict(fold(weights))
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.layers = [self.model.get_submodule(name) for name in self.model.layers]
        self.num_layers = len(self.layers)

    def grid(self, layer: int, num_frames: int) -> Grid:
        """See `VideoEncoder`; every halving rounds up."""
        check_layers(self, [layer])
        t, side = num_frames, self.size
        for part in self.layers[:layer]:
            if isinstance(part, Pool):
                t, side = -(-t // part.stride[0]), -(-side // part.stride[1])
            elif isinstance(part, Unit):
                t, side = -(-t // part.stride), -(-side // part.stride)
        return t, side, side

    def width(self, layer: int) -> int:
        """See `VideoEncoder`."""
        check_layers(self, [layer])
        before = (part for part in reversed(self.layers[:layer]) if not isinstance(part, Pool))
        return next(
            len(part.bias)
            if isinstance(part, Unit)
            else sum(len(unit.bias) for unit in (part.b0, part.b1b, part.b2b, part.b3b))
            for part in before
            if isinstance(part, (Unit, Mixed))
        )

    def hidden(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `VideoEncoder.hidden`; float32 whatever autocast says, no antialias."""
        check_layers(self, layers)
        check_clips(clips)
        self.model.to(clips.device)
        found: dict[int, Tensor] = {}
        with torch.autocast(clips.device.type, enabled=False):
            x = preprocess(clips.float(), self.size)
            for number, layer in enumerate(self.layers[: max(layers)], 1):
                x = layer(x)  # nothing behind writes into it: a unit's ReLU is on its own output
                if number in layers:
                    found[number] = x.permute(0, 2, 3, 4, 1)  # (B, T', H', W', C)
        return [found[layer] for layer in layers]


def load_i3d(path: str | Path | None = None, device: str | torch.device = "cpu") -> I3DFeatures:
    """The feature network with verified weights, from the cache or from a safetensors file.

    Raises:
        FileNotFoundError: the weights are not there; the message has the command to fetch them.
        EvatokError: they are damaged or others.
    """
    return I3DFeatures(read_weights(path), device)


def load_i3d_encoder(path: Path | None = None, size: int | None = None) -> I3DEncoder:
    """The encoder with verified weights; raises as `load_i3d` does."""
    return I3DEncoder(read_weights(path), size)


if __name__ == "__main__":
    sys.exit(main())
