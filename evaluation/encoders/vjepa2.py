"""V-JEPA 2 (Assran et al. 2025) as a frozen encoder: the paper's teacher for alignment.

`vjepa2-l` is facebook/vjepa2-vitl-fpc64-256: 24 layers of width 1024, tubelets of 2 × 16 × 16. Its
rotary positions take any even number of frames; 16 frames at 256 × 256 become 8 × 16 × 16 tokens.
The published preprocessor cuts a centre of 256 out of 292 pixels; here the whole frame is resized
to 256, because the features must cover what the tokenizer reconstructs. The predictor is not kept.

Shape letters: B batch, F frames, H W pixels, N tokens, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluation.encoders.encoder import find_weights, read_normalisation
from evaluation.encoders.transformer import TransformerEncoder, load_pretrained

REPOSITORY = "facebook/vjepa2-vitl-fpc64-256"
FILES = ("config.json", "model.safetensors")


class VJEPA2Encoder(TransformerEncoder):
    """The encoder of Transformers' `VJEPA2Model`."""

    def __init__(self, name: str, model: nn.Module, **normalisation: Any) -> None:
        """Freeze a `VJEPA2Model`; mean and std, if other than ImageNet's, by name."""
        config: Any = model.config
        self.model: Any = model.encoder
        super().__init__(
            name,
            self.model,
            tubelet=(config.tubelet_size, config.patch_size, config.patch_size),
            size=config.crop_size,
            width=config.hidden_size,
            **normalisation,
        )

    def layers(self) -> list[nn.Module]:
        """See `TransformerEncoder`."""
        return list(self.model.layer)

    def embed(self, pixels: Tensor) -> Tensor:
        """See `TransformerEncoder`."""
        return self.model.embeddings(pixels)

    def finish(self, tokens: Tensor) -> Tensor:
        """See `TransformerEncoder`."""
        return self.model.layernorm(tokens)


def load_vjepa2(path: Path | None = None) -> VJEPA2Encoder:
    """V-JEPA 2-L from the hub's cache, or any V-JEPA 2 from a folder.

    Raises:
        FileNotFoundError: its files are not there; the message says how to get them.
        EvatokError: they do not hold it.
        ImportError: transformers is not installed.
    """
    folder = find_weights(REPOSITORY, FILES, path)
    mean, std = read_normalisation(folder)
    return VJEPA2Encoder("vjepa2-l", load_pretrained("VJEPA2Model", folder), mean=mean, std=std)
