"""Suggestions for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'Frogger'?)" for the known name nearest to one, "" where none is near.

    Upper and lower case are alike.
    """
    by_fold = {word.casefold(): word for word in known}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1)
    return f" (did you mean {by_fold[near[0]]!r}?)" if near else ""


def did_you_mean_file(path: Path) -> str:
    """The same for a file that is not there, of what lies in its folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:  # no folder either, or one that may not be read
        return ""
    return did_you_mean(path.name, names)
