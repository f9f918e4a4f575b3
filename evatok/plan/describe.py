"""What a model or a settings file amounts to: parameters by part, levels, vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evaluation.encoders.masked import MaskedConfig, masked_model
from evaluation.encoders.nano import FeaturesConfig, NanoNet
from evatok.core.config import find_settings
from evatok.hub import load
from evatok.plan.training_networks import training_only
from evatok.workflows.train import load_training
from generator.data.shards import TokenSet
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.train import GeneratorConfig
from tokenizer.assignment import Levels
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig, TokenizerTraining


def describe(model_or_config: str) -> dict[str, Any]:
    """Describe trained parts by name or folder, or what a settings file would train.

    Returns:
        JSON-able: `parts`, a row each, and for every part its parameters by module; for the
        settings of a tokenizer also `training_only`, what is no part of it.

    Raises:
        FileNotFoundError: neither models nor a file.
        ConfigError: not the settings of something that is trained.
    """
    path = find_settings(model_or_config)
    if path.suffix in (".yaml", ".yml"):
        config: Any = load_training(path)
        with torch.device("meta"):  # sizes only
            model = model_of(config)
        out = {"config": str(path)} | _describe({config.stage: model})
        if isinstance(config, TokenizerTraining):
            out["training_only"] = training_only(config)
        return out
    models = load(model_or_config)
    return {"model": str(models.directory)} | _describe(
        {part: getattr(models, part) for part in models.parts}
    )


def model_of(config: Any) -> nn.Module:
    """The untrained model of a training's settings."""
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


def _describe(parts: dict[str, nn.Module]) -> dict[str, Any]:
    rows = [{"part": name, "parameters": _count(model)} for name, model in parts.items()]
    out: dict[str, Any] = {"parts": rows}
    for name, model in parts.items():
        out[name] = _facts(model) | _by_module(model)
    return out


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _by_module(model: nn.Module) -> dict[str, int]:
    counts = {name: _count(child) for name, child in model.named_children()}
    loose = sum(p.numel() for p in model.parameters(recurse=False))
    return counts | ({"other": loose} if loose else {})


def _facts(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, VideoTokenizer | Router):
        config = model.config
        facts: dict[str, Any] = {
            **_levels(model.levels, model.num_blocks),
            "num_frames": config.num_frames,
            "size": config.size,
        }
        if isinstance(model, VideoTokenizer):
            facts |= {
                "codebook_size": model.config.codebook_size,
                "code_dim": model.config.code_dim,
            }
        return facts
    if isinstance(model, GPT):
        return _vocabulary(model.vocabulary) | {
            "max_tokens": model.max_tokens,
            "frame_condition": None
            if model.frames is None
            else {"frames": model.frames.num_frames, "prefix": list(model.frames.prefix)},
        }
    if isinstance(model, NanoNet):
        return {"dim": model.dim, "class_names": list(model.class_names)}
    return {}


def _levels(levels: Levels, num_blocks: int) -> dict[str, Any]:
    return {
        "levels": list(levels.values),
        "num_blocks": num_blocks,
        "assignments": levels.num_candidates(num_blocks),
    }


def _vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocabulary": vocabulary.size,
        "codes": vocabulary.codebook_size,
        "levels": list(vocabulary.levels),
        "num_blocks": vocabulary.num_blocks,
        "class_names": list(vocabulary.class_names),
        "text_pieces": vocabulary.num_text,
    }
