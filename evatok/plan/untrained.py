"""The untrained model of a settings file, built on the meta device: sizes only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.encoders.masked import MaskedConfig, masked_model
from evaluation.encoders.nano import FeaturesConfig, NanoNet
from evatok.hub import TEXT
from evatok.plan.describe import LOOSE, facts_of, rows_of
from evatok.plan.training_networks import training_only
from evatok.workflows.pipeline_settings import read_settings
from evatok.workflows.train import load_training, stage_name
from generator.conditions import TextCondition
from generator.data.token_set import TokenSet
from generator.gpt import GPT
from generator.train import ExpectedTokens, GeneratorConfig
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig, TokenizerTraining


def describe_settings(path: Path) -> dict[str, Any]:
    """Describe what a settings file would train; see `evatok.plan.info.describe`."""
    if stage_name(path) == "own":
        with torch.device("meta"):
            models = {name: model_of(stage) for name, stage in _own_trainings(path).items()}
        counts = {name: _parameters(model) for name, model in models.items()}
        facts = {name: _facts(model, path) for name, model in models.items()}
        return {"config": str(path)} | rows_of(counts, facts)
    config: Any = load_training(path)
    with torch.device("meta"):
        model = model_of(config)
    stage = config.stage
    out = {"config": str(path)} | rows_of({stage: _parameters(model)}, {stage: _facts(model, path)})
    if isinstance(config, TokenizerTraining):
        out["training_only"] = training_only(config)
    return out


def _own_trainings(path: Path) -> dict[str, Any]:
    """Settings of every training of own videos, by stage; before there are tokens, with theirs.

    Raises:
        ConfigError: a mistake in the file.
        VideoError: a list of videos that cannot be used.
    """
    settings = read_settings(path, None)
    trainings = {name: stage for name, stage in settings.items() if hasattr(stage, "train")}
    generator, shape = settings["generator"], settings["final"].model
    if (generator.tokens / "train").is_dir():
        return trainings
    videos = [item for source in settings["tokens"].data.sources for item in source.items("train")]
    blocks = shape.num_frames // shape.patch[0]
    pieces = settings[TEXT].vocabulary_size if TEXT in settings else 0
    expected = ExpectedTokens(
        codebook_size=shape.codebook_size,
        levels=shape.levels,
        num_blocks=blocks,
        num_classes=len(videos[0].classes) if videos else 0,
        mean_length=1 + blocks * (1 + sum(shape.levels) / len(shape.levels)),
        frames=settings["tokens"].frames,
        num_text=pieces,
        text=TextCondition(digest="") if pieces else None,
    )
    return trainings | {"generator": generator.model_copy(update={"expect": expected})}


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
