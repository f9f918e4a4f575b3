"""The settings of a pipeline's steps: which class reads which file, and that they agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from evaluation.encoders.nano import FeaturesConfig
from evatok.core.config import Config, ConfigError, find_settings, load_config
from evatok.core.errors import MissingFileError
from evatok.hub import PREFERENCE, TEXT
from evatok.report.tables import ReportConfig
from evatok.workflows.own.settings import OwnConfig, derive
from evatok.workflows.search import SearchConfig
from evatok.workflows.text import TextConfig
from evatok.workflows.tokens import TokensConfig
from generator.train import GeneratorConfig
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig
from video.arcade import recorder

WIDE = "final-wide"  # optional: the final tokenizer goes on, for every w_q


class ArcadeConfig(Config):
    """Recorded footage; see `video.arcade.recorder.record`."""

    root: Path
    source: recorder.Source = "atari"
    games: tuple[str, ...] | None = None  # None: all of the source
    train_clips: int = Field(default=150, ge=1)  # files of each game
    test_clips: int = Field(default=15, ge=1)
    num_frames: int = Field(default=48, ge=2)
    size: int = Field(default=64, ge=16)
    seed: int = Field(default=0, ge=0)
    fps: int = Field(default=15, ge=1)
    workers: int = Field(default=2, ge=1)


class GateConfig(Config):
    """Minimum quality of the proxy before the pipeline continues."""

    set: str = "arcade"  # the source whose folder has this name
    min_gain: float = 2.0  # dB from the lowest to the highest uniform level
    clips: int = Field(default=360, ge=1)  # of each set


class PipelineConfig(Config):
    """pipeline.yaml; every other step has a file of its own beside it."""

    stage: Literal["pipeline"] = "pipeline"
    run_dir: Path
    arcade: ArcadeConfig | None = None  # None: the data is there already
    gate: GateConfig | None = GateConfig()  # None: go on whatever the proxy shows
    report: ReportConfig = ReportConfig()


FILES: dict[str, type[Config]] = {
    "pipeline": PipelineConfig,
    "features": FeaturesConfig,
    "proxy": ProxyConfig,
    "search": SearchConfig,
    "router": RouterTraining,
    PREFERENCE: RouterTraining,
    TEXT: TextConfig,
    "final": FinalConfig,
    WIDE: FinalConfig,
    "tokens": TokensConfig,
    "generator": GeneratorConfig,
}


def read_settings(path: Path, device: str | None) -> dict[str, Any]:
    """Read the settings of all steps, by name.

    Args:
        path: a folder of them, or the one file that `evatok init` writes.
        device: for every step, instead of the settings'.

    Raises:
        ConfigError: a file is wrong, or two files do not agree; every mistake is named.
        FileNotFoundError: a file is missing.
    """
    if path.is_file():
        return _derived(path, device)
    settings: dict[str, Any] = {
        name: load_config(schema, path / f"{name}.yaml", _placed(schema, device))
        for name, schema in FILES.items()
        if name not in (PREFERENCE, TEXT, WIDE) or (path / f"{name}.yaml").is_file()
    }
    check_agreement(settings, path)
    return settings


def final_of(settings: Mapping[str, Any]) -> str:
    """Name of the step whose tokenizer is shipped."""
    return WIDE if WIDE in settings else "final"


def check_agreement(settings: Mapping[str, Any], directory: Path) -> None:
    """Refuse settings that would train on something else than the step before has made."""
    s, run = settings, settings["pipeline"].run_dir
    wanted = [
        ("search.model", s["search"].model, run / "proxy" / "model"),
        ("router.table", s["router"].table, run / "search" / "train"),
        ("router.held_out_table", s["router"].held_out_table, run / "search" / "test"),
        ("router.search_batch", s["router"].search_batch, s["search"].batch_size),
        ("router.search_seed", s["router"].search_seed, s["search"].seed),
        *[
            (f"{PREFERENCE}.{key}", getattr(s[PREFERENCE], key), getattr(s["router"], key))
            for key in ("data", "table", "held_out_table", "search_batch", "search_seed")
            if PREFERENCE in s
        ],
        ("final.router", s["final"].router, run / "router" / "model"),
        *[
            (f"{WIDE}.{key}", getattr(s[WIDE], key), value)
            for key, value in (
                ("start_from", run / "final" / "model"),
                ("router", run / PREFERENCE / "model"),
            )
            if WIDE in s
        ],
        ("tokens.tokenizer", s["tokens"].tokenizer, run / final_of(s) / "model"),
        ("tokens.router", s["tokens"].router, run / "router" / "model"),
        ("tokens.text", s["tokens"].text, run / TEXT if TEXT in s else None),
        ("generator.tokens", s["generator"].tokens, run / "tokens"),
    ]
    wrong = [f"{name} is {is_}, should be {should}" for name, is_, should in wanted
             if is_ != should]  # fmt: skip
    if s["router"].data != s["search"].data:
        wrong.append("router.data is not search.data, whose clips it loads again")
    if TEXT in s and s[TEXT].data.sources != s["tokens"].data.sources:
        wrong.append("text.data.sources are not tokens.data.sources, whose clips it describes")
    if WIDE in s and PREFERENCE not in s:
        wrong.append(f"{WIDE}.yaml needs a router of {PREFERENCE}.yaml, a new file")
    if s["pipeline"].report.preferences and PREFERENCE not in s:
        wrong.append(f"report.preferences asks for a router of {PREFERENCE}.yaml, a new file")
    if wrong:
        raise ConfigError(f"{directory}: {'; '.join(wrong)}")


def _placed(schema: type[Config], device: str | None) -> list[str]:
    """Overrides that put a step on a device, where it has one."""
    if device is None:
        return []
    return [
        f"{key}={device}"
        for key, has_it in (
            ("train.device", "train" in schema.model_fields),
            ("device", "device" in schema.model_fields),
        )
        if has_it
    ]


def _derived(path: Path, device: str | None) -> dict[str, Any]:
    """The settings of every step, from the one file of own videos."""
    own = load_config(OwnConfig, path)
    settings: dict[str, Any] = {}
    for name, values in derive(own).items():
        schema = FILES[name]
        if device is not None:
            if "train" in values:
                values = values | {"train": values["train"] | {"device": device}}
            elif "device" in schema.model_fields:
                values = values | {"device": device}
        try:
            settings[name] = schema.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{path}: {name}: {error.errors()[0]['msg']}") from None
    return settings


def locate_settings(settings: Path) -> Path:
    """A folder of settings, or the file of own videos that a name stands for."""
    own = Path(f"{settings}.yaml")
    if own.is_file():
        return own
    settings = find_settings(settings)
    if settings.is_file():
        return settings
    if not settings.is_dir():
        raise MissingFileError(
            f"no folder {settings} and no {own}: `evatok init NAME --data DIR` writes one"
        )
    return settings
