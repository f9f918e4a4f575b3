"""Refuse arguments that would be rounded, or fail far from the call, in one line with a remedy."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from evatok.core.config import Config
from evatok.core.errors import EvatokError
from evatok.core.loading.records import first_mistake

C = TypeVar("C", bound=Config)


def settings_of(schema: type[C], **arguments: Any) -> C:
    """Return arguments as settings.

    Raises:
        EvatokError: names the first argument that cannot be used.
    """
    try:
        return schema(**arguments)
    except ValidationError as error:
        reason = first_mistake(error)
    raise EvatokError(reason)


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number, of Python, NumPy or torch; a whole float is one, as in settings.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that can be used.

    Raises:
        EvatokError: a bool, another type, or less.
    """
    bound = "" if least is None else f" ≥ {least}"
    number = None
    if isinstance(value, float | np.floating):
        number = int(value) if value.is_integer() else None
    elif not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or (least is not None and number < least):
        raise EvatokError(f"{name} is {value!r}: give a whole number{bound}")
    return number


def texts_of(name: str, given: Iterable[str] | None) -> list[str]:
    """Return a list, tuple or array of texts as a list; an empty one of None.

    Raises:
        EvatokError: one text alone, or anything else.
    """
    if isinstance(given, str):
        raise EvatokError(f"{given!r} is one name: give a list, one for each video")
    if given is None:
        return []
    found = list(given) if isinstance(given, Iterable) else [given]
    wrong = [text for text in found if not isinstance(text, str)]
    if wrong:
        raise EvatokError(f"{name} hold {wrong[0]!r}: give a list of texts, one for each video")
    return [str(text) for text in found]
