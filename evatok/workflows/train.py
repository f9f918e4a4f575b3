"""Settings file → trained model: which class reads it, which stage trains it, how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.encoders.masked import MaskedConfig, MaskedStage
from evaluation.encoders.nano import FeaturesConfig, FeaturesStage
from evatok.core.config import Config, ConfigError, find_settings, load_config, read_yaml
from evatok.core.paths import paths_in, refuse_overwrite
from evatok.hub import save_model
from generator.train import GeneratorConfig, GeneratorStage
from tokenizer.training.router_stage import RouterStage, RouterTraining
from tokenizer.training.tokenizer_stage import (
    FinalConfig,
    ProxyConfig,
    TokenizerStage,
)
from training.loop import Stage, train
from training.runs.run_folder import SETTINGS
from training.runs.run_log import read_rows


@dataclass(frozen=True)
class StageEntry:
    """One value of `stage:`.

    Attributes:
        schema: class of the settings.
        build: settings → stage.
    """

    schema: type[Config]
    build: Callable[[Any], Stage]


STAGES = {
    "features": StageEntry(FeaturesConfig, FeaturesStage),
    "videomae": StageEntry(MaskedConfig, MaskedStage),
    "proxy": StageEntry(ProxyConfig, TokenizerStage),
    "router": StageEntry(RouterTraining, RouterStage),
    "final": StageEntry(FinalConfig, TokenizerStage),
    "generator": StageEntry(GeneratorConfig, GeneratorStage),
}


def stage_name(path: Path, overrides: Sequence[str] = ()) -> str:
    """Stage of a settings file.

    Raises:
        ConfigError: it does not say.
    """
    name = read_yaml(path, overrides).get("stage")
    if not isinstance(name, str):
        raise ConfigError(f"{path}: stage: is missing; it is one of {', '.join(STAGES)}, search")
    return name


def load_training(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Settings of a training, by their `stage:`.

    Raises:
        ConfigError: no such stage, or keys that it does not have.
    """
    name = stage_name(path, overrides)
    if name == "own":
        raise ConfigError(
            f"{path} is for all stages of own videos: `evatok pipeline {path}` tells how long "
            "each takes, and trains them"
        )
    if name not in STAGES:
        raise ConfigError(f"{path}: stage: {name!r} is not trained; one of {', '.join(STAGES)}")
    return load_config(STAGES[name].schema, path, overrides)


def default_run_dir(path: Path) -> Path:
    """runs/<family>/<stage> for configs/<family>/<stage>.yaml."""
    return Path("runs") / path.resolve().parent.name / path.stem


def run_training(
    path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None
) -> dict[str, Any]:
    """Train what a settings file says, or go on with it, and save the model.

    Args:
        path: settings with a `stage:`.
        overrides: `key.path=value`.
        run_dir: folder of the run; see `default_run_dir`.

    Returns:
        JSON-able: stage, steps, parameters, folder of the model and the last validation's numbers.
    """
    path = find_settings(path)
    config: Any = load_training(path, overrides)
    folder = run_dir or default_run_dir(path)
    written = [folder, folder / SETTINGS, folder / "model"]
    refuse_overwrite(written, [path, *paths_in(config)], links=False)
    return train_config(config, folder)


def train_config(config: Any, run_dir: Path) -> dict[str, Any]:
    """As `run_training`, for settings that have been read."""
    stage = STAGES[config.stage].build(config)
    folder = run_dir / "model"
    whole = train(
        stage,
        config.train,
        run_dir,
        config,
        export=lambda model: save_model(stage.exported(model).cpu(), folder),
    )
    model = stage.exported(whole)
    return {
        "stage": config.stage,
        "steps": config.train.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": str(folder),
        "validation": last_validation(run_dir),
    }


def last_validation(run_dir: Path) -> dict[str, float]:
    """Numbers of the last validation in log.jsonl, without its step; {} where there was none."""
    found = [row for row in read_rows(run_dir / "log.jsonl") if row["kind"] == "validation"]
    return {k: v for k, v in found[-1].items() if k not in ("kind", "step")} if found else {}
