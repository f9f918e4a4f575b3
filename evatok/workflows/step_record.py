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

from evatok.core.config import ConfigError
from evatok.core.errors import EvatokError
from evatok.core.files import write_text


class GateResult(BaseModel, extra="allow"):
    """What the gate found."""

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
