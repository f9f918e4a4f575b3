"""The board as one HTML file: sorted and filtered in the browser, nothing else is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.scoring.leaderboard import rows, tables, text_of, title
from evaluation.scoring.records import Key, Record
from evatok.core.extras import extra
from evatok.core.paths import printable

with extra("evaluation"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).resolve().parent
NAMES = {
    "protocol": "the protocol",
    "metric": "the metric",
    "network": "the feature network",
    "checksum": "the network's weights (sha256)",
    "clips": "the number of clips",
    "data": "the real set (fingerprint)",
}
SETTINGS = {
    "num_frames": "frames of a clip",
    "num_real": "real clips",
    "num_fake": "clips scored",
    "size": "pixels",
    "biased": "biased covariance",
    "cut.window": "window of a video",
    "cut.seed": "seed of the draw",
    "cut.count": "clips drawn",
    "cut.shrink": "pixels that both sides are first resized to",
    "cut.shrink_by": "kind of that resize",
    "cut.resize": "pixels kept as",
    "cut.order": "order of the videos",
    "cut.short": "videos shorter than a clip",
}


def page(records: Sequence[Record], heading: str = "Leaderboard") -> str:
    """All tables of records as one HTML file."""
    found = tables(records)
    names = _titles(list(found))
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    choices = {
        field: sorted({printable(getattr(key, field)) for key in found} - {""})
        for field in ("protocol", "network", "source")
    }
    return environment.get_template("page.html").render(
        title=heading,
        choices={field: values for field, values in choices.items() if len(values) > 1},
        tables=[_table(key, mine, names) for key, mine in found.items()],
    )


def why_apart(here: Key, there: Key) -> str:
    """Why numbers of two keys do not compare, in words; "" where they do."""
    if here.source != there.source:
        paper = "there" if there.source == "published" else "here"
        return (
            f"{paper} stand numbers of papers, whose weights, clips and settings nobody can check"
        )
    parts = []
    for field in Key._fields:
        if field == "settings":
            continue
        one, other = getattr(here, field), getattr(there, field)
        if one != other:
            parts.append(_differs(NAMES[field], one, other, shorten=field in ("data", "checksum")))
    first, second = (flat_settings(key.settings) for key in (here, there))
    for name in sorted({*first, *second}):
        one, other = first.get(name), second.get(name)
        if one != other and not _is_said(name, parts):
            parts.append(_differs(SETTINGS.get(name, f"the setting {name}"), one, other))
    return "; ".join(parts)


def _is_said(name: str, parts: Sequence[str]) -> bool:
    """Counts on both sides follow from the number of clips, if that differs already."""
    return name in ("num_real", "num_fake", "cut.count") and any(
        part.startswith(NAMES["clips"]) for part in parts
    )


def _differs(what: str, one: Any, other: Any, shorten: bool = False) -> str:
    here, there = (_as_text(value)[: 8 if shorten else None] for value in (one, other))
    return f"{what}: {here} here, {there} there"


def _as_text(value: Any) -> str:
    if value is None or value == "":
        return "not told"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return printable(value)


def flat_settings(settings: str) -> dict[str, Any]:
    """The settings of a key by name, those inside others as `cut.window`."""
    out: dict[str, Any] = {}
    for name, value in json.loads(settings).items():
        if isinstance(value, dict):
            out |= {f"{name}.{inner}": deep for inner, deep in value.items()}
        else:
            out[name] = value
    # Said by the clips already, and by what the network saw.
    return {k: v for k, v in out.items() if k not in ("cut.num_frames", "cut.size")}


def settings_in_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words for a reader."""
    words = []
    if "num_frames" in settings:
        words.append(f"{settings['num_frames']} frames")
    if "size" in settings:
        words.append(f"{_as_text(settings['size'])} pixels")
    if settings.get("cut.window"):
        words.append(f"{settings['cut.window']} windows of each video")
    if settings.get("cut.count") is not None:
        words.append(f"{settings['cut.count']:,} clips drawn with seed {settings.get('cut.seed')}")
    if settings.get("cut.resize") == "float":
        words.append("resized without rounding, the longer side cut off to whole pixels")
    if settings.get("cut.order") == "name":
        words.append("videos in order of their file names")
    if settings.get("cut.short") == "skip":
        words.append("videos shorter than a clip left out")
    if settings.get("cut.shrink") is not None:
        words.append(f"first resized to {settings['cut.shrink']} ({settings.get('cut.shrink_by')})")
    if "biased" in settings:
        words.append(f"{'biased' if settings['biased'] else 'unbiased'} covariance")
    if settings.get("num_real") != settings.get("num_fake"):
        words.append(f"{settings.get('num_real')} real against {settings.get('num_fake')} clips")
    return words


def _titles(keys: Sequence[Key]) -> dict[Key, str]:
    """Titles, numbered where several are alike."""
    plain = [title(key) for key in keys]
    out = {}
    for n, (key, name) in enumerate(zip(keys, plain, strict=True)):
        place = plain[: n + 1].count(name)
        out[key] = name if plain.count(name) == 1 else f"{name} ({place})"
    return out


def _table(key: Key, mine: Sequence[Record], names: dict[Key, str]) -> dict[str, Any]:
    cells = rows(mine)
    columns = [name for name in dict.fromkeys(n for row in cells for n in row) if name != "95 %"]
    is_number = {
        name: all(isinstance(row.get(name, 0), (int, float)) or row[name] == "" for row in cells)
        for name in columns
    }
    highs = [r.interval[1] if r.interval else r.value for r in mine]
    top = max([*highs, 0.0])
    settings = flat_settings(key.settings)
    return {
        "title": printable(names[key]),
        "settings": ", ".join(settings_in_words(settings)),
        "protocol": printable(key.protocol),
        "network": printable(key.network),
        "source": printable(key.source),
        "columns": [
            {
                "name": printable(n).replace("_", " "),
                "is_number": is_number[n],
                "is_value": n == key.metric,
            }
            for n in columns
        ],
        "has_bars": any(record.interval for record in mine),
        "top": text_of(float(top)) if top > 0 else "",
        "rows": [
            {
                "cells": [
                    _cell(row.get(name, ""), is_number[name], name == key.metric)
                    for name in columns
                ],
                "bar": _bar(record, top),
            }
            for row, record in zip(cells, mine, strict=True)
        ],
        "apart": [
            {"title": printable(names[other]), "reasons": why_apart(key, other)}
            for other in names
            if other != key and (other.protocol, other.metric) == (key.protocol, key.metric)
        ],
    }


def _cell(value: Any, is_number: bool, is_value: bool) -> dict[str, Any]:
    text = f"{value:,}" if isinstance(value, int) else text_of(value)
    return {"text": text, "value": printable(value), "is_number": is_number,
            "is_value": is_value}  # fmt: skip


def _bar(record: Record, top: float) -> dict[str, Any] | None:
    """Places of an interval and its value in per cent of the track, 0 to the table's highest."""
    if record.interval is None or top <= 0:
        return None
    low, high, value = (min(max(100 * number / top, 0), 100)
                        for number in (*record.interval, record.value))  # fmt: skip
    low_text, high_text = map(text_of, record.interval)
    return {
        "left": f"{low:.2f}",
        "width": f"{high - low:.2f}",
        "dot": f"{value:.2f}",
        "text": f"{low_text} to {high_text}",
    }
