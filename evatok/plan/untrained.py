"""The untrained model of a settings file, built on the meta device: sizes only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.encoders.masked import MaskedConfig, masked_model
from evaluation.encoders.nano import FeaturesConfig, NanoNet
from evatok.plan.describe import LOOSE, facts_of, rows_of
from evatok.plan.training_networks import training_only
from evatok.workflows.train import load_training
from generator.data.token_set import TokenSet
from generator.gpt import GPT
from generator.train import GeneratorConfig
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig, TokenizerTraining


def describe_settings(path: Path) -> dict[str, Any]:
    """Describe what a settings file would train; see `evatok.plan.info.describe`."""
    config: Any = load_training(path)
    with torch.device("meta"):
        model = model_of(config)
    stage = config.stage
    out = {"config": str(path)} | rows_of({stage: _parameters(model)}, {stage: _facts(model, path)})
    if isinstance(config, TokenizerTraining):
        out["training_only"] = training_only(config)
    return out


def model_of(config: Any) -> nn.Module:
    """Build the untrained model of a training's settings."""
    if isinstance(config, ProxyConfig | FinalConfig):
        return VideoTokenizer(config.model)
    if isinstance(config, RouterTraining):
        return Router(config.model)
    if isinstance(config, FeaturesConfig):
        # how many classes there are is the data's affair
        return NanoNet(["unknown"], **config.model.model_dump())
    if isinstance(config, MaskedConfig):
        return masked_model(config)
    assert isinstance(config, GeneratorConfig)
    if config.expect is not None:
        return GPT(config.model, config.expect.vocabulary, config.expect.frames, config.expect.text)
    tokens = TokenSet(config.tokens / "train")
    return GPT(config.model, tokens.vocabulary, tokens.frames, tokens.text)


def _facts(model: nn.Module, path: Path) -> dict[str, Any]:
    """Return what the model's config.json would say, in plain words."""
    if isinstance(model, VideoTokenizer | Router):
        return facts_of(model.config.model_dump(mode="json"), path)
    if isinstance(model, GPT):
        parts = {"vocabulary": model.vocabulary, "frames": model.frames, "text": model.text}
        config = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
        return facts_of(config, path)
    if isinstance(model, NanoNet):
        return {"dim": model.dim, "class_names": list(model.class_names)}
    return {}


def _parameters(model: nn.Module) -> dict[str, int]:
    """Return the parameters of each module."""
    counts = {
        name: sum(parameter.numel() for parameter in child.parameters())
        for name, child in model.named_children()
    }
    loose = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    return counts | ({LOOSE: loose} if loose else {})
