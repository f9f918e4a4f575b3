"""Tiny untrained transformers in folders, to check plumbing against Transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from evaluation.encoders.transformer import quiet, transformers

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def shaken(model: Any) -> Any:
    """Weights far from their start, so that every path carries signal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(model: Any, folder: Path) -> Any:
    with quiet():
        model.save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def videomae(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    package = transformers()
    settings = {
        "image_size": 16, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
        "use_mean_pooling": False, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1, "decoder_intermediate_size": 32,
    }  # fmt: skip
    config = package.VideoMAEConfig(**settings | changes)
    return save(shaken(package.VideoMAEForPreTraining(config)), folder)


def vjepa2(folder: Path) -> Any:
    torch.manual_seed(0)
    package = transformers()
    config = package.VJEPA2Config(
        crop_size=32, patch_size=8, frames_per_clip=16, hidden_size=24, num_attention_heads=2,
        num_hidden_layers=3, pred_hidden_size=12, pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )  # fmt: skip
    return save(shaken(package.VJEPA2Model(config)), folder)
