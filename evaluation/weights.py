"""Every pretrained file that settings can ask for: its use, its place, and whether it is right.

Nothing is downloaded here; each row says how to get its file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.encoders import videomae, vjepa2
from evaluation.encoders.encoder import find_weights
from evaluation.encoders.i3d import weights as i3d_weights
from evaluation.fetch import WeightsError
from evaluation.perceptual import efficientnet, lpips

State = Literal["verified", "there, not pinned", "damaged", "missing"]
PINNED_BY_NAME = "begins with 397923af"
NOT_PINNED = "not pinned"


@dataclass(frozen=True)
class Weights:
    """One file, or one folder of the Hugging Face cache.

    Attributes:
        name: of the network.
        used_for: which settings ask for it.
        path: where it is, or where it is looked for.
        checksum: sha256 that it must have, as far as it is known.
        state: verified against that checksum; there, with none to compare with; damaged; missing.
        get: how to get it.
    """

    name: str
    used_for: str
    path: str
    checksum: str
    state: State
    get: str


def _state(check: Callable[[], object], *, pinned: bool = True) -> State:
    try:
        check()
    except FileNotFoundError:
        return "missing"
    except WeightsError:
        return "damaged"
    return "verified" if pinned else "there, not pinned"


def _hub(name: str, used_for: str, repository: str, files: tuple[str, ...]) -> Weights:
    try:
        path = str(find_weights(repository, files, None))
    except FileNotFoundError:
        path = f"{repository} in the Hugging Face cache"
        state: State = "missing"
    else:
        state = "there, not pinned"
    return Weights(name, used_for, path, NOT_PINNED, state, f"hf download {repository}")


def registry() -> list[Weights]:
    """All files, each one looked at: those with a checksum are read to the end."""
    i3d, lite = i3d_weights.weights_path(), efficientnet.weights_path()
    trunk = next((p for p in lpips.trunk_paths() if p.is_file()), lpips.trunk_paths()[-1])
    return [
        Weights(
            "I3D, Kinetics-400",
            "fvd[i3d]; alignment and discriminator with encoder i3d",
            str(i3d),
            i3d_weights.WEIGHTS_SHA256,
            _state(i3d_weights.read_weights),
            i3d_weights.COMMAND,
        ),
        Weights(
            "EfficientNet-Lite0, ImageNet",
            "loss.perceptual.network efficientnet-lite0",
            str(lite),
            efficientnet.WEIGHTS_SHA256,
            _state(efficientnet.read_weights),
            efficientnet.COMMAND,
        ),
        Weights(
            "VGG16, ImageNet",
            "loss.perceptual.network lpips: its trunk",
            str(trunk),
            PINNED_BY_NAME if trunk.suffix == ".pth" else NOT_PINNED,
            _state(lambda: lpips.read_trunk(trunk), pinned=trunk.suffix == ".pth"),
            lpips.GET,
        ),
        Weights(
            "LPIPS 0.1, linear weights for VGG16",
            "loss.perceptual.network lpips",
            str(lpips.linear_path()),
            lpips.LINEAR_SHA256,
            _state(lpips.read_linear),
            "part of torchmetrics",
        ),
        _hub(
            "V-JEPA 2-L",
            "alignment.encoder vjepa2-l",
            vjepa2.REPOSITORY,
            vjepa2.FILES,
        ),
        _hub(
            "VideoMAE-B",
            "adversarial.discriminator.encoder videomae",
            videomae.REPOSITORY,
            videomae.FILES,
        ),
        _shipped(),
    ]


def _shipped() -> Weights:
    path = Path(videomae.SHIPPED)
    there = all((path / name).is_file() for name in videomae.FILES)
    return Weights(
        "VideoMAE, tiny",
        "encoder videomae-nano",
        str(path),
        NOT_PINNED,
        "there, not pinned" if there else "missing",
        "shipped; evatok train configs/nano/videomae.yaml",
    )


def rows() -> list[dict[str, Any]]:
    """`registry` as JSON-able rows."""
    return [asdict(weights) for weights in registry()]
