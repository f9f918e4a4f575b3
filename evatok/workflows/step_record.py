"""A step's record: what it was done with, and what came of it.

A record is there twice: before the step, unfinished, and after it, with a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError, model_validator

from evatok.core.config import Config, ConfigError
from evatok.core.errors import EvatokError
from evatok.core.files import write_text
from training.runs.run_folder import MAY_CHANGE

# Settings that change no result; `steps` does.
HARMLESS = MAY_CHANGE - {"steps"} | {"workers", "cache_dir", "processes"}


class GateResult(BaseModel, extra="allow"):
    """Result of the gate."""

    passed: bool
    set: str
    psnr: list[float]
    gain: float
    min_gain: float


class StepRecord(BaseModel, extra="forbid"):
    """run_dir/steps/STEP.json: a finished one has a result and its seconds."""

    step: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    finished: bool
    result: dict[str, Any] = {}
    seconds: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _check(self) -> StepRecord:
        if self.finished and not {"result", "seconds"} <= self.model_fields_set:
            raise EvatokError("a finished step without result or seconds")
        if self.finished and self.step == "gate":
            GateResult.model_validate(self.result.get("gate"))
        return self


def read_record(path: Path) -> dict[str, Any]:
    """A step's record.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return StepRecord.model_validate_json(path.read_bytes()).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise ConfigError(
            f"{path}: damaged record ({place}: {first['msg']}): remove it to do the step again"
        ) from None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_text(path, json.dumps(record, indent=1))


def result_digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a result."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def changed_settings(
    schema: type[Config] | None, before: dict[str, Any], now: dict[str, Any]
) -> list[str]:
    """Name the settings that would give another result: "key was 1, is 2".

    Args:
        schema: class of the settings; None without any.
        before: as recorded.
        now: as they are.
    """
    old, new = _flat(_filled(schema, before)), _flat(now)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[-1] not in HARMLESS
    ]


def _filled(schema: type[Config] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with the defaults of those that have come since, which change nothing."""
    if schema is None:
        return settings
    try:
        return schema.model_validate(settings).model_dump(mode="json")
    except ValidationError:  # a setting has gone since: it will be named
        return settings


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as {"a.b.0": value}."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    flat: dict[str, Any] = {}
    for key, value in items:
        name = f"{prefix}{key}"
        is_nested = isinstance(value, dict | list)
        flat |= _flat(value, f"{name}.") if is_nested else {name: value}
    return flat
