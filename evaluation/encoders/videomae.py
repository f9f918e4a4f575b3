"""VideoMAE (Tong et al. 2022) as a frozen encoder: the paper's, and our own tiny one.

`videomae` is VideoMAE-B (MCG-NJU/videomae-base), the backbone of the semantic discriminator in the
paper. `videomae-nano` is of the same class, trained here by masked prediction
(`evaluation.encoders.masked`) and shipped. Both take 16 frames and only these: their positions
are a fixed table.

Shape letters: B batch, F frames, H W pixels, N tokens, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluation.encoders.encoder import Grid, find_weights, read_normalisation
from evaluation.encoders.transformer import TransformerEncoder, load_pretrained
from evatok.core.errors import EvatokError, MissingFileError

REPOSITORY = "MCG-NJU/videomae-base"
FILES = ("config.json", "model.safetensors")
SHIPPED = Path(__file__).resolve().parent / "weights" / "nano" / "videomae"


class VideoMAEEncoder(TransformerEncoder):
    """Transformers' `VideoMAEModel`."""

    def __init__(self, name: str, net: nn.Module, **normalisation: Any) -> None:
        """Freeze a `VideoMAEModel`; mean and std, if other than ImageNet's, by name."""
        config: Any = net.config
        self.num_frames = config.num_frames
        super().__init__(
            name,
            net,
            tubelet=(config.tubelet_size, config.patch_size, config.patch_size),
            size=config.image_size,
            width=config.hidden_size,
            **normalisation,
        )
        self.model: Any = net

    def layers(self) -> list[nn.Module]:
        """See `TransformerEncoder`."""
        return list(self.model.encoder.layer)

    def embed(self, pixels: Tensor) -> Tensor:
        """See `TransformerEncoder`."""
        return self.model.embeddings(pixels, None)

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm, which models that were trained to pool their tokens lack."""
        norm = self.model.layernorm
        return tokens if norm is None else norm(tokens)

    def grid(self, layer: int, num_frames: int) -> Grid:
        """See `VideoEncoder`."""
        if num_frames != self.num_frames:
            raise EvatokError(
                f"{self.name} takes clips of {self.num_frames} frames, not {num_frames}"
            )
        return super().grid(layer, num_frames)


def load_videomae(path: Path | None = None) -> VideoMAEEncoder:
    """VideoMAE-B from the hub's cache, or any VideoMAE from a folder.

    Raises:
        FileNotFoundError: its files are not there; the message says how to get them.
        EvatokError: they do not hold it.
        ImportError: transformers is not installed.
    """
    folder = find_weights(REPOSITORY, FILES, path)
    mean, std = read_normalisation(folder)
    return VideoMAEEncoder("videomae", load_pretrained("VideoMAEModel", folder), mean=mean, std=std)


def load_videomae_nano(path: Path | None = None) -> VideoMAEEncoder:
    """The shipped tiny VideoMAE, or another of its training from a folder.

    Pixels are normalised with ImageNet's values, which the class assumes in its training loss.

    Raises:
        FileNotFoundError: the folder has no weights.
        EvatokError: they are others.
        ImportError: transformers is not installed.
    """
    folder = SHIPPED if path is None else path
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingFileError(
                f"no nano VideoMAE in {folder}: {name} is missing; train one with "
                "`evatok train configs/nano/videomae.yaml` or give the folder of another"
            )
    return VideoMAEEncoder("videomae-nano", load_pretrained("VideoMAEModel", folder))
