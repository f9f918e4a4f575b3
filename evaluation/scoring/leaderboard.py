"""Tables of records: one for each set of numbers that compare, sorted, best first."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from evaluation.scoring.records import Key, Record, read_records, write_records
from evatok.core.errors import EvatokError
from evatok.core.paths import printable
from evatok.core.processes.locks import held

PUBLISHED = Path(__file__).resolve().parent / "published.json"
Format = Literal["table", "md", "csv", "html"]
FORMATS: tuple[Format, ...] = ("table", "md", "csv", "html")


def add(board: Path, records: Sequence[Record]) -> list[Record]:
    """Add records to a board, a file; those that are there already are not added twice.

    Raises:
        EvatokError: the board is no list of records.
    """
    board.parent.mkdir(parents=True, exist_ok=True)
    # A second process would write a board without what this one adds.
    with held(board.with_name(f".{board.name}.lock")):
        there = read_records(board) if board.is_file() else []
        new = [record for record in records if record not in there]
        if new:
            write_records(board, [*there, *new])
    return new


def tables(records: Sequence[Record]) -> dict[Key, list[Record]]:
    """Records that compare, best first; tables in order of protocol and network."""
    out: dict[Key, list[Record]] = {}
    for record in records:
        out.setdefault(record.key, []).append(record)
    order = sorted(out, key=lambda key: tuple(map(str, key)))
    return {key: sorted(out[key], key=lambda record: record.value) for key in order}


def one_table(records: Sequence[Record], protocol: str, network: str | None = None) -> list[Record]:
    """The only table of a protocol.

    Raises:
        EvatokError: there is none, or there are several that must not be mixed, with the reason.
    """
    found = tables([r for r in records if r.protocol == protocol and network in (None, r.network)])
    if not found:
        known = ", ".join(sorted({record.protocol for record in records})) or "none"
        raise EvatokError(f"no record of protocol {protocol!r}; there are {known}")
    if len(found) > 1:
        raise EvatokError(f"{protocol}: records that do not compare: {_difference(list(found))}")
    return next(iter(found.values()))


def _difference(keys: list[Key]) -> str:
    parts = []
    for name in Key._fields:
        values = sorted({str(getattr(key, name)) for key in keys})
        if len(values) > 1:
            parts.append(f"{name} is {' or '.join(values)}")
    return "; ".join(parts)


def title(key: Key) -> str:
    """One-line description of a table's numbers."""
    network = f"[{key.network}]" if key.network else ""
    count = "count not told" if key.clips is None else f"{key.clips:,} clips"
    source = " · published, not measured here" if key.source == "published" else ""
    data = f", real set {key.data[:8]}" if key.data else ""
    return f"{key.protocol}: {key.metric}{network}, {count}{data}{source}"


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of a table, from its records."""
    names = list(dict.fromkeys(name for record in records for name in record.extra))
    out = []
    for record in records:
        row: dict[str, Any] = {"name": record.name, record.metric: record.value}
        if any(other.interval for other in records):
            low_high = record.interval
            row["95 %"] = "" if low_high is None else f"{low_high[0]:.4g} to {low_high[1]:.4g}"
        row |= {name: record.extra.get(name, "") for name in names}
        if any(other.damaged for other in records):
            row["damaged"] = len(record.damaged)
        if record.reference:
            row["reference"] = record.reference
        out.append(row)
    return out


def render(records: Sequence[Record], format: Format) -> str:
    """All tables as text of a format: md or csv; `evaluation.scoring.page` makes the HTML.

    Raises:
        EvatokError: another format.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for key, mine in tables(records).items():
        name = title(key)
        same = sum(other.partition(" · settings ")[0] == name for other in found)
        found[f"{name} · settings {same + 1}" if same else name] = rows(mine)
    if format == "md":
        return "\n".join(_markdown(name, table) for name, table in found.items())
    if format == "csv":
        return _csv(found)
    raise EvatokError(f"format {format!r} is not one of {', '.join(FORMATS)}")


def _columns(table: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row))


def text_of(value: Any) -> str:
    """A value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)


def _markdown_text(value: Any) -> str:
    """A cell: nothing in it can end the row, or become a tag, a link or a picture."""
    text = text_of(value).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`]|(?<=\])\()", r"\\\1", text)


def _markdown(name: str, table: Sequence[dict[str, Any]]) -> str:
    columns = _columns(table)
    heads = [" | ".join(map(_markdown_text, columns)), " | ".join("---" for _ in columns)]
    lines = [f"## {_markdown_text(name)}", "", *heads]
    lines += [" | ".join(_markdown_text(row.get(c, "")) for c in columns) for row in table]
    return "\n".join(lines[:2] + [f"| {line} |" for line in lines[2:]]) + "\n"


def _csv(found: dict[str, list[dict[str, Any]]]) -> str:
    columns = ["table"]
    columns += [n for n in _columns([row for t in found.values() for row in t]) if n != "table"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({column: printable(column) for column in columns})
    for name, table in found.items():
        writer.writerows(
            {
                key: printable(value) if isinstance(value, str) else value
                for key, value in row.items()
            }
            for row in ({"table": name, **row} for row in table)
        )
    return text.getvalue()
