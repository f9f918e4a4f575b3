"""Settings: small frozen classes, filled from YAML files and `key.path=value` overrides.

Every mistake in a file is reported at once, by dotted key and by the file it is written in, before
anything else happens. A file may start from another one with `base: other.yaml`, or from several
with `base: [one.yaml, two.yaml]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WrapValidator,
    field_validator,
    model_validator,
)

from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import write_text
from evatok.core.loading.yaml_text import LARGEST_FILE, ConfigError, parse_yaml
from evatok.core.renamed import KEYS
from evatok.core.suggest import did_you_mean, did_you_mean_file

T = TypeVar("T", bound="Config")

MOST_FILES = 64  # that a file of settings may be based on, each as often as it is named
MOST_MISTAKES = 20  # that are listed


# Sizes. The limits lie far above any use: they turn a slip, or a broken file, into a message before
# memory is asked for.
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
Width = Annotated[int, Field(ge=1, le=65_536)]  # channels
Depth = Annotated[int, Field(ge=1, le=1024)]  # layers
Heads = Annotated[int, Field(ge=1, le=1024)]
PixelCount = Annotated[int, Field(ge=1, le=8192)]  # pixels
Frames = Annotated[int, Field(ge=1, le=4096)]  # or blocks
Level = Annotated[int, Field(ge=1, le=65_536)]  # tokens of a block
Count = Annotated[int, Field(ge=1, le=2**24)]  # codes, rows of a batch
LARGEST_WHOLE = 2**63 - 1  # what a tensor can hold


def _picture_size(value: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Read a side of a square, or [height, width]; a square's two sides become one number."""
    if not isinstance(value, (list, tuple)):
        return handler(value)
    if len(value) != 2:
        raise EvatokError(f"{list(value)} should be one number, or [height, width]")
    height, width = (handler(side) for side in value)
    return height if height == width else (height, width)


if TYPE_CHECKING:
    PictureSize = int | tuple[int, int]
else:  # pixels: the side of a square, or [height, width]
    PictureSize = Annotated[
        PixelCount,
        WrapValidator(_picture_size),
        PlainSerializer(lambda size: list(size) if isinstance(size, tuple) else size),
    ]


LARGEST_MODEL = 2 * 10**10  # parameters; 80 GB in float32


def check_parameters(count: int) -> None:
    """Raise for more parameters than any model of this method has; a slip costs no memory."""
    if count > LARGEST_MODEL:
        raise EvatokError(f"{count:.2g} parameters; at most {LARGEST_MODEL:.0e} are built")


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused, no conversion that hides a mistake.

    Conversions that remain: int → float, a whole float → int (`steps: 1e4`), list → tuple,
    str → Path, and the text of a number → float (YAML readers differ on `1e-4`). Refused: bool ↔
    number, text → bool, text → int.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_surprise(cls, value: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> Any:
        parsed = handler(value)
        _refuse_conversion(value, parsed)
        _refuse_size(parsed)
        return parsed


def _refuse_conversion(raw: Any, parsed: Any) -> None:
    """Raise where pydantic read a value as a type that it was not written as."""
    if isinstance(parsed, bool) or isinstance(raw, bool):
        if isinstance(parsed, (bool, int, float)) and type(raw) is not type(parsed):
            raise EvatokError(f"{raw!r} should be a {_word(parsed)}")
    elif isinstance(parsed, int) and isinstance(raw, str):
        raise EvatokError(f"{raw!r} should be a whole number, without quotes")
    elif isinstance(raw, (list, tuple)) and isinstance(parsed, (list, tuple)):
        for a, b in zip(raw, parsed, strict=True):
            _refuse_conversion(a, b)
    elif isinstance(raw, dict) and isinstance(parsed, dict):
        for a, b in zip(raw.values(), parsed.values(), strict=True):
            _refuse_conversion(a, b)


def _refuse_size(parsed: Any) -> None:
    """Raise where a whole number fits no tensor."""
    if isinstance(parsed, int) and abs(parsed) > LARGEST_WHOLE:
        raise EvatokError("is too large: whole numbers go up to 2^63 - 1")
    if isinstance(parsed, tuple):
        for item in parsed:
            _refuse_size(item)


def _word(value: bool | int | float) -> str:
    return "bool (true or false)" if isinstance(value, bool) else "number"


Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Optimiser; `training.optimization.optimizer` assigns parameters to it."""

    # adamw: all parameters. muon: torch.optim.Muon for hidden matrices, AdamW for the rest.
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    # Muon's updates are scaled to the size of AdamW's, so equal rates fit; null = `lr`.
    muon_lr: float | None = Field(default=None, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, ge=0)  # largest global gradient norm, 0 = off


class ScheduleConfig(Config):
    """Learning rate over the run, see `training.optimization.schedule`."""

    name: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    # Share of the peak towards which cosine and wsd fall.
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    # wsd (warm-up, stable, decay): share of all steps in which the rate falls linearly.
    decay_fraction: float = Field(default=0.2, ge=0, le=1)


class AdversaryConfig(Config):
    """Training of the adversary, see `training.stage.Adversarial`."""

    # Optimiser steps that the model takes alone; the adversary neither learns nor judges.
    start_step: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)  # from there on it learns at every n-th step
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()  # from `start_step` to the end of the run


class TrainConfig(Config):
    """One run of the loop. Counts are optimiser steps; 0 in `*_every` means never."""

    steps: int = Field(ge=1)
    batch_size: Count  # rows of one optimiser step, over all processes
    grad_accumulation: int = Field(default=1, ge=1)  # parts into which a process cuts its rows
    seed: int = Field(default=0, ge=0, lt=2**40)  # times a million plus a step: below 2^63
    # auto (a GPU if there is one), cpu, cuda, cuda:1, mps; of several processes each takes its own.
    device: str = "auto"
    # bf16 = autocast; weights stay float32. A CPU without bf16 products computes in float32.
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  # 0 = off
    # Compile what is trained, once a run (a minute or two; needs a C++ compiler on a CPU): the
    # tokenizers' layers, quantizer and pixel losses each as a piece, other models as a whole.
    compile: bool = False
    checkpoint_activations: bool = False  # recompute each layer in backward: less memory
    # fsdp: each of several processes keeps its rows of the layers' weights and optimiser states.
    sharding: Literal["none", "fsdp"] = "none"
    num_workers: int = Field(default=0, ge=0)  # changes speed only
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=500, ge=0)  # and once at the end, unless 0
    save_every: int = Field(default=500, ge=0)  # and once at the end, always
    keep_checkpoints: int = Field(default=2, ge=1)
    # Beside log.jsonl and TensorBoard: wandb, mlflow, … (accelerate's; each needs its package).
    trackers: tuple[TrackerName, ...] = ()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _parts_have_rows(self) -> TrainConfig:
        if self.batch_size % self.grad_accumulation:
            raise EvatokError(
                f"batch_size {self.batch_size} is not divisible by "
                f"grad_accumulation {self.grad_accumulation}"
            )
        return self


# --- reading --------------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parents[2] / "configs"


def shipped_names() -> list[str]:
    """The shipped settings as users name them: nano/proxy, ucf101/final …"""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")
    )


def find_settings(name: Path | str) -> Path:
    """Return the file or folder of settings of this name.

    A path wins. What is no path is looked for among the shipped settings, from any folder:
    `nano/proxy`, `nano/proxy.yaml`, `configs/nano/proxy.yaml` and the folder `nano`.

    Returns:
        The name as it is, where there is neither; reading it says so.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for found in (SHIPPED / inner, SHIPPED / f"{inner}.yaml"):
        if ".." not in inner.parts and found.exists():
            return found
    return path


def read_yaml(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a settings file, its bases and overrides into one plain dict.

    Args:
        path: a YAML mapping. `base: other.yaml` (relative to the file) is read first and the file
            merged into it: mappings key by key, anything else replaced. A list of bases is read
            in order, each merged into those before it.
        overrides: `key.path=value`, value in YAML; a number in the path indexes a list.

    Raises:
        ConfigError: not YAML, not a mapping, bases in a circle, or a malformed override.
        FileNotFoundError: the file or a base is not there.
    """
    return _merged(_layers(Path(path), overrides))


def load_config(schema: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """Read a settings file into its class.

    Raises:
        ConfigError: names every unknown or ill-typed key with its dotted path and its file.
        FileNotFoundError: the file or a base is not there.
    """
    layers = _layers(Path(path), overrides)
    try:
        return schema.model_validate(_merged(layers))
    except pydantic.ValidationError as error:
        items = error.errors()
        mistakes = [_describe(schema, item, layers, Path(path)) for item in items[:MOST_MISTAKES]]
        if len(items) > MOST_MISTAKES:
            mistakes.append(f"and {len(items) - MOST_MISTAKES} more")
        raise ConfigError("; ".join(dict.fromkeys(mistakes))) from None


def save_config(config: Config, path: Path | str) -> None:
    """Write settings with every default filled in; the file is whole or not there."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(Path(path), text)


Layer = tuple[str, dict[str, Any]]  # where it is written, what is written there


def _layers(path: Path, overrides: Sequence[str]) -> list[Layer]:
    """The base of all, ..., the file itself, then one layer for each override."""
    layers = _files(find_settings(path), (), [])
    merged = _merged(layers)
    for override in overrides:
        layer = (f"override {override!r}", _parse_override(override, merged))
        layers.append(layer)
        merged = _merge(merged, layer[1])
    return layers


def _files(path: Path, above: tuple[Path, ...], read: list[Path]) -> list[Layer]:
    """A file behind its bases; `read` collects all that were read on the way."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base` leads back to this file")
    read.append(path)
    if len(read) > MOST_FILES:
        raise ConfigError(f"{path}: `base` leads to more than {MOST_FILES} files")
    if not path.is_file():
        raise MissingFileError(
            f"no settings file {path}: give a path, or a shipped name such as nano/proxy"
            f"{did_you_mean(str(path.with_suffix('')), shipped_names()) or did_you_mean_file(path)}"
        )
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ConfigError(
            f"{path} has {size} bytes: no settings, which have {LARGEST_FILE} at most"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    data = parse_yaml(text, str(path))
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines, not a {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return [(str(path), data)]
    names = base if isinstance(base, list) else [base]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: `base` should be the name of a file, or a list, not {base!r}")
    below = (*above, path.resolve())
    layers = [layer for name in names for layer in _files(path.parent / name, below, read)]
    return [*layers, (str(path), data)]


def _parse_override(text: str, merged: dict[str, Any]) -> dict[str, Any]:
    """One override as a nested dict; where the path goes through a list, the whole new list."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"override {text!r} should read key.path=value")
    new = parse_yaml(value, f"override {text!r}")

    def build(names: list[str], old: Any) -> Any:
        if not names:
            return new
        name, rest = names[0], names[1:]
        if isinstance(old, list):
            if not name.isdigit() or int(name) >= len(old):
                raise ConfigError(f"override {text!r}: {name!r} is no place in {len(old)} entries")
            place = int(name)
            inner = build(rest, old[place])
            if isinstance(inner, dict) and isinstance(old[place], dict):
                inner = _merge(old[place], inner)
            return [*old[:place], inner, *old[place + 1 :]]
        return {name: build(rest, old.get(name) if isinstance(old, dict) else None)}

    return build(names, merged)


def _merged(layers: Sequence[Layer]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for _, data in layers:
        merged = _merge(merged, data)
    return merged


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            value = _merge(before, value)
        merged[key] = value
    return merged


def _describe(schema: type[Config], item: Any, layers: Sequence[Layer], path: Path) -> str:
    """One mistake: file, dotted key, what is wrong."""
    keys = tuple(item["loc"])
    dotted = ".".join(map(str, keys)) or "the whole"
    where = next((name for name, data in reversed(layers) if _holds(data, keys)), str(path))
    if item["type"] == "extra_forbidden":
        names, key = _names(schema, keys[:-1]), str(keys[-1])
        what = f"unknown key{did_you_mean(key, names)}"
        if KEYS.get(key) in names:
            what = f"is now called {KEYS[key]}"
    elif item["type"] == "missing":
        what = "is missing"
    else:
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] != "value_error":
            shown = repr(item["input"])
            what += f", not {shown if len(shown) <= 80 else shown[:77] + '...'}"
    return f"{where}: {dotted}: {what}"


def _holds(data: Any, keys: tuple[Any, ...]) -> bool:
    for key in keys:
        in_dict = isinstance(data, dict) and key in data
        in_list = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not (in_dict or in_list):
            return False
        data = data[key]
    return True


def _names(schema: Any, keys: tuple[Any, ...]) -> list[str]:
    """Field names of the class at a path, none where the path leads through a union or a list."""
    for key in keys:
        fields = getattr(schema, "model_fields", {})
        if key not in fields:
            return []
        schema = fields[key].annotation
    return list(getattr(schema, "model_fields", {}))
