"""Display of a command's result: for people, or as one JSON object on the last line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evatok.cli.process import drop_stdout
from evatok.core.paths import printable


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result.

    Args:
        result: JSON-able. Lists of objects with the same keys become tables for people.
        as_json: one JSON object, the last line of stdout.

    Raises:
        OSError: stdout takes no more; `filename` is "stdout".
    """
    with naming_stdout():
        if as_json:
            sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
        else:
            _show_text(result)
        sys.stdout.flush()


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Let an error of writing say that it was stdout."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = "stdout"
        if not isinstance(error, BrokenPipeError):
            drop_stdout()
        raise


def _show_text(result: Mapping[str, Any]) -> None:
    # Where nobody looks on, tables are not folded into 80 columns.
    console = _Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    for name, value in result.items():
        if _is_table(value):
            console.print(_table(name, value))
        elif isinstance(value, Mapping):
            console.print(f"{name}:", markup=False, soft_wrap=True)
            for key, inner in value.items():
                console.print(f"  {key}: {_text(inner)}", markup=False, soft_wrap=True)
        else:
            console.print(f"{name}: {_text(value)}", markup=False, soft_wrap=True)


class Once(logging.Filter):
    """Lets each warning through once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown: not a warning that was shown before."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line; rich would end the process here."""
        raise


def _is_table(value: Any) -> bool:
    return bool(value) and isinstance(value, list) and all(isinstance(v, Mapping) for v in value)


def _table(title: str, rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title=escape(printable(title)), title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), (int, float)) for row in rows)
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(row.get(column, ""))) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, (list, tuple)):
        return " ".join(_text(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None else printable(value)
