"""The I3D of TATS and VideoGPT, `i3d_pretrained_400.pt`, from a file of the user's.

    evatok fvd real samples --features i3d-tats:i3d_pretrained_400.pt

The same weights of Kinetics-400 in a state dict of torch, whose names
`evaluation.encoders.i3d.network` shares; what differs is around them, and moves a distance:
BatchNorm ε = 1e-5, not 1e-3, and bytes that are truncated, not rounded. Rows under `i3d-tats`
compare with TATS and OmniTokenizer, not with `i3d`.

The file is read as tensors only (`weights_only=True`, or safetensors) and must hold every layer in
its shape; `num_batches_tracked`, which files have or lack, does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evaluation import fetch
from evaluation.encoders.i3d.network import I3D, I3DFeatures, Unit
from evatok.core.errors import EvatokError

NAME = "i3d-tats"
EPSILON = 1e-5
GET = f"give {NAME}:FILE, i3d_pretrained_400.pt of https://github.com/songweige/TATS"
# A byte that went through [-1, 1] in float32 comes back a little off; it is not a smaller one.
BYTE_SLACK = 1e-3


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the file must hold, by its name; 287 of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        model = I3D()
    for name, module in model.named_modules():
        if isinstance(module, Unit):
            shapes[f"{name}.conv3d.weight"] = tuple(module.weight.shape)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{leaf}"] = tuple(module.bias.shape)
    shapes["logits.conv3d.weight"] = tuple(model.logits.weight.shape)
    assert model.logits.bias is not None, "the logits have one"
    shapes["logits.conv3d.bias"] = tuple(model.logits.bias.shape)
    return shapes


def checked(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of an I3D, float32, without counters.

    Args:
        state: as it lies in the file.
        where: for messages.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape.
    """
    tensors = {name: t for name, t in state.items() if not name.endswith(".num_batches_tracked")}
    return fetch.verified_state(
        tensors, expected_shapes(), where, "a state dict of the I3D of TATS", GET
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """`checked` tensors of a torch or safetensors file.

    Raises:
        FileNotFoundError: it is not there.
        WeightsError: it holds anything but the tensors of an I3D.
    """
    return checked(fetch.read_state(path, GET), str(path))


def truncated(clips: Tensor) -> Tensor:
    """Clips in [-1, 1] as bytes cut off, not rounded, in [-1, 1] again; bytes stay as they are."""
    bytes_ = ((clips.float() + 1) * 127.5 + BYTE_SLACK).floor().clamp(0, 255)
    return bytes_ / 127.5 - 1


class TatsFeatures(I3DFeatures):
    """The feature network `i3d-tats`: as `I3DFeatures`, with ε and bytes as TATS has them."""

    name = NAME
    epsilon = EPSILON

    def features(self, clips: Tensor) -> Tensor:
        """Logits (B, 400) of clips whose bytes are cut off."""
        return super().features(truncated(clips))


def load_i3d_tats(path: str | Path | None, device: str | torch.device = "cpu") -> TatsFeatures:
    """The network from a file; raises as `read_state` does, and ValueError where none is named."""
    if path is None:
        raise EvatokError(f"{NAME} needs its file; {GET}")
    return TatsFeatures(read_state(Path(path)), device)
