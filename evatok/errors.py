"""Which exceptions are the caller's doing: they become one line and exit status 2."""

from __future__ import annotations

import traceback
from pathlib import Path

import pydantic

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("video", "training", "evaluation", "tokenizer", "generator", "evatok")


def message_for_user(error: BaseException) -> str | None:
    """One line for an error that the caller can mend, None for any other.

    Bad input is a missing or unusable file, or an exception that one of our own packages raised on
    purpose, with a `raise`. A ValueError from inside a library, or from an operation such as an
    unequal `zip`, is a mistake of ours: it keeps its traceback.
    """
    if isinstance(error, pydantic.ValidationError):
        parts = (
            f"{'.'.join(map(str, item['loc'])) or error.title}: {item['msg']}"
            for item in error.errors()
        )
        return "; ".join(parts)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ImportError)) and _raised_on_purpose(error):
        return _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _raised_on_purpose(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise"):
        return False
    path = Path(frames[-1].filename).resolve()
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
