"""Experiment trackers get what log.jsonl gets."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking

from evatok.core.config import ConfigError, TrainConfig
from evatok.core.errors import EvatokError
from training.loop import train
from training.runs.trackers import Trackers


def settings(**changes: Any) -> TrainConfig:
    values = {"steps": 4, "batch_size": 4, "log_every": 2, "validate_every": 4, "save_every": 4}
    return TrainConfig.model_validate(values | changes)


def test_a_tracker_is_told_settings_and_rows(
    tmp_path: Path, toy_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Stand(SimpleNamespace):
        """accelerate's interface of a tracker."""

        requires_logging_directory = True

        def __init__(self, name: str, logging_dir: Path) -> None:
            told.append((name, logging_dir.name))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(values)

        def log(self, values: dict[str, float], step: int) -> None:
            told.append((step, sorted(values)[0].split("/")[0]))

        def finish(self) -> None:
            told.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Stand)
    train(toy_stage(), settings(trackers=["aim"]), tmp_path / "run")
    assert told[0] == ("run", "trackers") and told[1]["optimizer.lr"] == settings().optimizer.lr
    assert told[2:] == [(2, "train"), (4, "train"), (4, "validation"), "finished"]


def test_a_tracker_of_accelerate_itself_writes(tmp_path: Path, toy_stage: Any) -> None:
    train(toy_stage(), settings(trackers=["tensorboard"]), tmp_path / "run")
    assert list((tmp_path / "run" / "trackers" / "run").glob("events*"))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EvatokError, match=r"wandb is not installed: pip install wandb"):
        Trackers(["wandb"], tmp_path, {})
    with pytest.raises((ConfigError, ValueError), match="trackers"):
        settings(trackers=["wandbb"])
