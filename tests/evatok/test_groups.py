"""Weight decay and Muon of every shipped model: what the names said before modules said it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from evaluation.encoders.masked import MaskedConfig, masked_model
from evatok.core.config import load_config
from evatok.hub import Models
from tokenizer.losses.alignment import AlignmentHead
from tokenizer.losses.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.quantizer import VectorQuantizer
from training.optimization.optimizer import looked_up, output_layers

LOOKUPS = ("embedding", "codebook", "position")


def models(toy: Models, root: Path) -> dict[str, nn.Module]:
    tokenizer = toy.final.config.model_dump() | {"token_positions": True}
    config = PatchDiscriminatorConfig(width=24, layers=1, heads=2, per_clip=True)
    found: dict[str, Any] = {
        "tokenizer": VideoTokenizer(TokenizerConfig.model_validate(tokenizer)),
        "router": toy.router,
        "generator": toy.generator,
        "features": toy.features,
        "alignment": AlignmentHead(8, 4, (1, 2, 2)),
        "discriminator": PatchDiscriminator(config, 16, 32),
        "quantizer": VectorQuantizer(8, 4, 0.0),
    }
    if importlib.util.find_spec("transformers"):
        found["videomae"] = masked_model(
            load_config(MaskedConfig, root / "configs" / "nano" / "videomae.yaml")
        )
    return found


@pytest.mark.filterwarnings("ignore")
def test_groups_of_shipped_models(toy: Models, root: Path) -> None:
    for name, model in models(toy, root).items():
        matrices = {n for n, p in model.named_parameters() if p.ndim >= 2}
        hidden = {n for n, p in model.named_parameters() if p.ndim == 2}
        lookups = {
            n for n in matrices if any(w in n for w in ("embedding", "codebook", "position"))
        }
        assert looked_up(model) & matrices == lookups, name
        assert output_layers(model) & hidden - lookups == {
            n for n in hidden - lookups if "head" in n
        }, name
