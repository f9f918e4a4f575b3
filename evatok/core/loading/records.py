"""JSON records: read whole and as their schema says, or refused in one line with a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evatok.core.errors import EvatokError

LARGEST = 2**28  # bytes; a record of a million clips has some 100 MB

M = TypeVar("M", bound=BaseModel)


class RecordError(EvatokError):
    """A record that is there and cannot be used; the message names the file and the remedy."""


def parse_json(text: str | bytes, source: str, remedy: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: UTF-8 where it is bytes.
        source: file, and line where it has several, for the message.
        remedy: what the user can do, in the imperative.

    Raises:
        RecordError: it is not JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        reason = "nested too deep"
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, too long a number
        reason = " ".join(str(error).split())
    raise RecordError(f"{source} is no JSON ({reason}): {remedy}")


def read_json(path: Path, remedy: str) -> Any:
    """Return the value of a JSON file.

    Args:
        path: of the file.
        remedy: what the user can do, in the imperative.

    Raises:
        FileNotFoundError: no such file.
        RecordError: it is not JSON, or larger than any record.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise RecordError(f"{path} has {size} bytes, which no record has: {remedy}")
    return parse_json(path.read_bytes(), str(path), remedy)


def read_object(path: Path, remedy: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the JSON object in a file, which must have these keys; see `read_json`."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise RecordError(f"{path} should hold a JSON object, not {_kind(value)}: {remedy}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise RecordError(f"{path}: {missing[0]} is missing: {remedy}")
    return value


def read_record(schema: type[M], path: Path, remedy: str) -> M:
    """Return the record in a file, checked against its class; see `read_json`."""
    return checked(schema, read_object(path, remedy), str(path), remedy)


def checked(schema: type[M], value: Any, source: str, remedy: str) -> M:
    """Return a value as a record of this class.

    Raises:
        RecordError: names the first key at fault.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        reason = first_mistake(error)
    raise RecordError(f"{source}: {reason}: {remedy}")


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake that pydantic found, in a line: dotted key and what is wrong."""
    item = error.errors(include_url=False)[0]
    place = ".".join(map(str, item["loc"]))
    what = item["msg"].removeprefix("Value error, ")
    if item["type"] not in ("value_error", "missing"):
        shown = repr(item["input"])
        what += f", not {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return f"{place}: {what}" if place else what


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
