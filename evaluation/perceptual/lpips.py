"""LPIPS with VGG16 (Zhang et al. 2018, version 0.1), without torchvision.

The linear weights travel with torchmetrics. The VGG16 trunk is torchvision's ImageNet checkpoint
`vgg16-397923af.pth`, 553 MB, which nothing here downloads: it is looked for as a file of the
settings or in torch's hub cache, as that file or as safetensors of the same tensors.

Shape letters: N frames, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation.encoders.base import weights_checksum
from evaluation.fetch import WeightsError, file_sha256
from evaluation.perceptual.distance import FeatureDistance
from evatok.core.errors import MissingFileError
from evatok.core.files import cache_dir
from evatok.core.loading.weights import check_finite

TRUNK = "vgg16-397923af.pth"  # torchvision names a file by the beginning of its sha256
SAFE = "vgg16-imagenet.safetensors"
LINEAR_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
GET = f"fetch {TRUNK}, torchvision's VGG16_Weights.IMAGENET1K_V1"

# Channels of the convolutions; a group ends where its features are taken, and before a max-pool.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet pixels in [−1, 1]


class VGG16(nn.Module):
    """The convolutions of VGG16 (Simonyan & Zisserman 2015): features of its five groups."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList()
        channels = 3
        for group in GROUPS:
            layers = nn.ModuleList()
            for width in group:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.groups.append(layers)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Features after the last ReLU of each group, of frames (N, 3, H, W) in [−1, 1]."""
        x = (frames - self.mean) / self.std
        features = []
        for number, group in enumerate(self.groups):
            if number:
                x = F.max_pool2d(x, 2)
            assert isinstance(group, nn.ModuleList)
            for layer in group:
                x = F.relu(layer(x))
            features.append(x)
        return features


def trunk_of(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Our names and tensors from torchvision's (`features.0.weight` …).

    Raises:
        WeightsError: they are not those of a VGG16.
    """
    wanted = VGG16().state_dict()
    places = _places()
    try:
        trunk = {
            f"groups.{group}.{layer}.{part}": state[f"features.{place}.{part}"].float()
            for (group, layer), place in places.items()
            for part in ("weight", "bias")
        }
    except KeyError as error:
        raise WeightsError(f"{source} is no VGG16: {error} is missing") from None
    for name, tensor in trunk.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            )
    check_finite(trunk, source, GET)
    return trunk


def _places() -> dict[tuple[int, int], int]:
    """(group, layer) → number in torchvision's list, which counts ReLUs and pools too."""
    places, number = {}, 0
    for group, widths in enumerate(GROUPS):
        for layer in range(len(widths)):
            places[group, layer] = number
            number += 2
        number += 1
    return places


def linear_path() -> Path:
    """Path of LPIPS's linear weights for VGG16 in torchmetrics."""
    spec = find_spec("torchmetrics")
    assert spec is not None and spec.origin is not None, "torchmetrics is a dependency"
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


def trunk_paths() -> list[Path]:
    """Path of the trunk in the cache."""
    return [cache_dir() / SAFE, Path(torch.hub.get_dir()) / "checkpoints" / TRUNK]


def read_trunk(path: str | Path | None = None) -> dict[str, Tensor]:
    """The trunk's tensors by our names.

    Args:
        path: torchvision's checkpoint or safetensors of its tensors, instead of `trunk_paths`.

    Raises:
        FileNotFoundError: it is not there.
        WeightsError: it is damaged, or no VGG16.
    """
    candidates = trunk_paths() if path is None else [Path(path)]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        places = " or ".join(str(file) for file in candidates)
        raise MissingFileError(
            f"LPIPS needs torchvision's VGG16, looked for at {places}: {GET}, put it there "
            "or give a copy of it as `path`"
        )
    if found.suffix == ".safetensors":
        try:
            return trunk_of(load_file(found), found)
        except SafetensorError as error:
            raise WeightsError(f"{found} is not a whole safetensors file ({error})") from error
    start = TRUNK.removesuffix(".pth").rpartition("-")[2]
    sha256 = file_sha256(found)
    if not sha256.startswith(start):
        raise WeightsError(f"{found} has sha256 {sha256}, which should begin with {start}")
    return trunk_of(torch.load(found, map_location="cpu", weights_only=True, mmap=True), found)


def read_linear(path: Path | None = None) -> list[Tensor]:
    """LPIPS's weights (C,) of each group.

    Raises:
        WeightsError: torchmetrics ships others than version 0.1.
    """
    path = path or linear_path()
    sha256 = file_sha256(path)
    if sha256 != LINEAR_SHA256:
        raise WeightsError(f"{path} has sha256 {sha256}, expected {LINEAR_SHA256}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{group}.model.1.weight"].flatten().float() for group in range(len(GROUPS))]


def lpips(trunk: Mapping[str, Tensor], linear: list[Tensor]) -> FeatureDistance:
    """LPIPS of these weights: `read_trunk`, `read_linear`."""
    net = VGG16()
    net.load_state_dict(trunk)
    named = dict(trunk) | {f"linear.{i}": weight for i, weight in enumerate(linear)}
    return FeatureDistance("lpips", weights_checksum(named), net, linear)


def load_lpips(path: str | Path | None = None) -> FeatureDistance:
    """LPIPS; see `load_perceptual`."""
    return lpips(read_trunk(path), read_linear())
