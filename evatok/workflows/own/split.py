"""A folder of own videos: what is in it, a held-out split, and a short file of settings."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evatok.core.config import ConfigError
from evatok.core.files import write_text
from evatok.workflows.own.settings import (
    OwnConfig,
    Preset,
    check_levels,
    check_shape,
    default_levels,
)
from evatok.workflows.own.sources import look
from evatok.workflows.own.start import read_start
from video.clips import Size
from video.lists import Split
from video.reading import VideoError, frame_times, probe


def init(
    name: str,
    data: Path,
    size: Size | None = None,
    frames: int | None = None,
    levels: tuple[int, ...] | None = None,
    captions: Path | None = None,
    preset: Preset = "standard",
    held_out: float = 0.1,
    start_from: str | None = None,
) -> dict[str, Any]:
    """Look at a folder and write NAME.yaml and NAME.csv, the list with classes and splits.

    Args:
        name: of the project; results go to runs/NAME.
        data: folder, list or shards; see `evatok.workflows.own.sources`.
        size: pixels of a side, or (height, width); by default 64, or that of `start_from`.
        frames: of a clip; by default 16, or those of `start_from`.
        levels: permitted tokens of a block; by default up to five, from the size.
        captions: .csv or .jsonl with path and caption; videos that it leaves out are left out.
        preset: how long everything is trained.
        held_out: share of each class that is kept for testing, one video at least.
        start_from: models to go on from, see `OwnConfig`; their size, frames and levels are taken.

    Returns:
        JSON-able: classes, counts, sizes, lengths, damaged files, and the two files.

    Raises:
        ConfigError: a name that is no file name or is taken, or sizes that cannot be used.
        FileNotFoundError: no models to start from.
        VideoError: no readable videos.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ConfigError(
            f"the name {name!r} is no file name: letters, digits, - and _{_near(name)}"
        )
    settings, listed = Path(f"{name}.yaml"), Path(f"{name}.csv")
    run_dir = Path("runs") / name
    for path in (settings, listed):
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or remove it")
    start = None if start_from is None else read_start(start_from, run_dir)
    if start is not None:
        size = start.shape.size if size is None else size
        frames = start.shape.num_frames if frames is None else frames
        levels = levels or tuple(start.shape.levels)
    size, frames = 64 if size is None else size, 16 if frames is None else frames
    check_shape(size, frames)
    chosen = levels or default_levels(size, preset)
    check_levels(frames, chosen)
    if start is not None:
        start.check(size, frames, chosen)
    if not 0 < held_out < 1:
        raise ConfigError(f"held-out share {held_out:g} is not between 0 and 1")
    found = look(data, captions, Path(f"{name}-videos"))
    with_captions = bool(found.captions)
    names, pictures, lengths, damaged = [], Counter[str](), [], []
    left_out = 0
    for key in found.classes:
        path = found.root / key
        if with_captions and key not in found.captions:
            left_out += 1
            continue
        try:
            seen, info = frame_times(path), probe(path)
            if seen.reason:
                raise VideoError(f"{path}: {seen.reason}")
        except VideoError as error:
            damaged.append(str(error))
            continue
        names.append(key)
        pictures[f"{info.width}x{info.height}"] += 1
        lengths.append(seen.packets)
    if len(names) < 2:
        why = f", {damaged[0]}" if damaged else ""
        raise VideoError(f"{data}: {len(names)} readable videos; at least 2 are needed{why}")
    rows = split_rows({key: found.classes[key] for key in names}, found.splits, held_out)
    columns = ["path", "class", "split"] + (["caption"] if with_captions else [])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([*row, *([found.captions[row[0]]] if with_captions else [])] for row in rows)
    own = OwnConfig(
        data=found.root,
        videos=listed,
        run_dir=run_dir,
        size=size,
        frames=frames,
        levels=chosen,
        preset=preset,
        captions=with_captions,
        start_from=start_from,
    )
    write_text(listed, text.getvalue())
    told = own.model_dump(mode="json", exclude_none=True)
    body = yaml.safe_dump(told, sort_keys=False, default_flow_style=None)
    write_text(settings, f"# evatok pipeline {name}\n{body}")
    splits = Counter(row[2] for row in rows)
    given = sum(name in found.splits for name in names)
    return {
        "found": found.kind,
        "classes": dict(Counter(row[1] for row in rows)),
        "train": splits["train"],
        "test": splits["test"],
        "split": f"{given} as given, {len(names) - given} drawn by a hash of the path; "
        f"kept in {listed}: edit it before the pipeline runs",
        "captions": len(names) if with_captions else 0,
        "sizes": dict(pictures.most_common(5)),
        "frames": {"least": min(lengths), "most": max(lengths)},
        "shorter_than_a_clip": sum(length < frames for length in lengths),
        "damaged": damaged[:20],
        "num_damaged": len(damaged),
        "without_caption": left_out,
        "settings": str(settings),
        "list": str(listed),
        "next": f"evatok pipeline {name}",
    }


def _near(name: str) -> str:
    """Suggest a name without the suffix and with - for other letters, where there is one."""
    plain = re.sub(r"\.ya?ml$", "", name)
    near = re.sub(r"[^\w-]+", "-", plain).strip("-_")
    return f"; give {near}" if near else ""


def split_rows(
    classes: dict[str, str], given: Mapping[str, Split], held_out: float
) -> list[tuple[str, str, Split]]:
    """(path, class, split) of each video.

    Args:
        classes: of each path.
        given: splits that are not to be changed.
        held_out: share of each class that is held out; a hash of the path draws among those whose
            split is not given.
    """
    by_class: dict[str, list[str]] = {}
    for name, label in classes.items():
        by_class.setdefault(label, []).append(name)
    rows: list[tuple[str, str, Split]] = []
    for label, own in sorted(by_class.items()):
        free = [name for name in own if name not in given]
        count = max(1, round(held_out * len(free))) if len(free) > 1 else 0
        drawn = sorted(free, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
        for name in own:
            rows.append((name, label, given.get(name, "test" if name in drawn else "train")))
    for wanted in ("train", "test"):  # one video a class, or a list that holds out all or none
        if all(split != wanted for _, _, split in rows):
            rows[0] = (*rows[0][:2], wanted)
    return rows
