"""Frozen video encoders: clips to grids of features, with gradient to the clips.

Teachers of the representation alignment and backbones of the semantic discriminator (method
section 3). One file a network, as for the feature networks; unlike these, an encoder gives the
features of any of its layers, place by place, and lets gradients through to the clips.

Shape letters: B batch, F frames, H W pixels, T' H' W' cells of a layer's grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from evatok.core.config import Config
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.records import read_object

EncoderName = Literal["vjepa2-l", "videomae", "videomae-nano", "i3d"]
Grid = tuple[int, int, int]  # T', H', W'
PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


class EncoderConfig(Config):
    """Name of an encoder, and path of its weights."""

    encoder: EncoderName
    path: Path | None = None  # folder (i3d: file) of the weights; null = shipped or in the cache
    # Edge to which frames are resized; null = the network's own. Only i3d takes another.
    size: int | None = None


class VideoEncoder(Protocol):
    """A trained network whose weights are frozen and whose layers, 1 to `num_layers`, can be read.

    It is no `nn.Module`: no state dict, optimiser or average of whoever uses it may hold its
    weights. They follow the clips to their device.
    """

    @property
    def name(self) -> str:
        """As in `EncoderConfig.encoder`."""
        ...

    @property
    def checksum(self) -> str:
        """sha256 in hex that identifies the weights."""
        ...

    @property
    def num_layers(self) -> int:
        """The last layer; it is the network's output, with its final norm where it has one."""
        ...

    def grid(self, layer: int, num_frames: int) -> Grid:
        """T', H', W' of a layer for clips of so many frames.

        Raises ValueError where the network does not take them.
        """
        ...

    def width(self, layer: int) -> int:
        """C of a layer."""
        ...

    def hidden(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features of these layers, in this order.

        Args:
            clips: (B, 3, F, H, W) float in [-1, 1]; resized and normalised as the network was
                trained, the whole frame, so that the grid covers what the clip shows.
            layers: each from 1 to `num_layers`. Later ones than the last asked for are not run.

        Returns:
            (B, T', H', W', C) each.

        Raises:
            EvatokError: no such layer, or clips that the network does not take.
        """
        ...


def check_layers(encoder: VideoEncoder, layers: Sequence[int]) -> None:
    """Refuse layers that the encoder does not have, and an empty list."""
    if not layers:
        raise EvatokError(f"no layer of {encoder.name} is asked for")
    for layer in layers:
        if not 1 <= layer <= encoder.num_layers:
            raise EvatokError(f"{encoder.name} has layers 1 to {encoder.num_layers}, not {layer}")


def find_weights(repository: str, files: Sequence[str], path: Path | None) -> Path:
    """Folder of a network of the Hugging Face hub; nothing is downloaded.

    Args:
        repository: `owner/name`, looked for in the hub's cache.
        files: that must be there.
        path: a folder instead.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    get = f"`hf download {repository}` fetches it, or give the folder of a copy as `path`"
    if path is None:
        cached = try_to_load_from_cache(repository, files[0])
        if not isinstance(cached, str):
            raise MissingFileError(f"{repository} is not in the Hugging Face cache: {get}")
        path = Path(cached).parent
    for name in files:
        if not (path / name).is_file():
            raise MissingFileError(f"{path / name} is missing: {get}")
    return path


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`image_mean` and `image_std` of a network's preprocessor, for pixels in [0, 1].

    Raises:
        FileNotFoundError: the folder has no settings of a preprocessor.
        EvatokError: they do not hold three numbers each.
    """
    file = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    if file is None:
        raise MissingFileError(
            f"{folder}: none of {', '.join(PREPROCESSORS)}: copy it there from where the weights "
            "are from; it says how pixels are normalised"
        )
    try:
        settings = read_object(file, "copy it anew from where the weights are from")
        mean, std = (tuple(map(float, settings[key])) for key in ("image_mean", "image_std"))
    except (ValueError, KeyError, TypeError) as error:
        raise EvatokError(f"{file}: no image_mean and image_std ({error!r})") from None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise EvatokError(f"{file}: image_mean {mean} and image_std {std} are not of 3 colours")
    return mean, std
