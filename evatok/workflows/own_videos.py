"""A folder of own videos: what is in it, a held-out split, and a short file of settings."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from evatok.core.config import ConfigError
from evatok.core.files import write_text
from evatok.workflows.own_settings import OwnConfig, Preset, check_shape, default_levels
from video.folder import videos_under
from video.io import VideoError, frame_times, probe
from video.lists import read_table

ONE_CLASS = "video"  # of a folder without sub-folders


def init(
    name: str,
    data: Path,
    size: int = 64,
    frames: int = 16,
    levels: tuple[int, ...] | None = None,
    captions: Path | None = None,
    preset: Preset = "standard",
    held_out: float = 0.1,
) -> dict[str, Any]:
    """Look at a folder and write NAME.yaml and NAME.csv, the list with classes and splits.

    Args:
        name: of the project; results go to runs/NAME.
        data: videos, in a sub-folder for each class or all in one folder.
        size: pixels of a side.
        frames: of a clip.
        levels: permitted tokens of a block; by default up to five, from the size.
        captions: csv with columns path and caption; videos that it leaves out are left out.
        preset: how long everything is trained.
        held_out: share of each class that is kept for testing, one video at least.

    Returns:
        JSON-able: classes, counts, sizes, lengths, damaged files, and the two files.

    Raises:
        ConfigError: a name that is no file name or is taken, or sizes that cannot be used.
        VideoError: no readable videos.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"the name {name!r} is no file name: letters, digits, - and _")
    settings, listed = Path(f"{name}.yaml"), Path(f"{name}.csv")
    for path in (settings, listed):
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or remove it")
    chosen = levels or default_levels(size)
    check_shape(size, frames, chosen)
    if not 0 < held_out < 1:
        raise ConfigError(f"held-out share {held_out:g} is not between 0 and 1")
    if not data.is_dir():
        raise VideoError(f"{data}: no such folder")
    files = videos_under(data)
    if not files:
        tars = " (unpack its .tar shards first)" if any(data.glob("*.tar")) else ""
        raise VideoError(f"{data}: no videos in this folder{tars}")
    told = _captions(captions)
    names, pictures, lengths, damaged = [], Counter[str](), [], []
    left_out = 0
    for path in files:
        key = path.relative_to(data).as_posix()
        if told is not None and key not in told:
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
        raise VideoError(f"{data}: {len(names)} readable videos; at least 2 are needed")
    rows = _split(names, held_out)
    columns = ["path", "class", "split"] + (["caption"] if told is not None else [])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([*row, *([told[row[0]]] if told is not None else [])] for row in rows)
    own = OwnConfig(
        data=data,
        videos=listed,
        run_dir=Path("runs") / name,
        size=size,
        frames=frames,
        levels=chosen,
        preset=preset,
        captions=told is not None,
    )
    write_text(listed, text.getvalue())
    body = yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
    write_text(settings, f"# evatok pipeline {name}\n{body}")
    splits = Counter(row[2] for row in rows)
    return {
        "classes": dict(Counter(row[1] for row in rows)),
        "train": splits["train"],
        "test": splits["test"],
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


def _split(names: list[str], held_out: float) -> list[tuple[str, str, str]]:
    """(path, class, split) of each video; a hash of the path draws the held-out ones."""
    by_class: dict[str, list[str]] = {}
    for name in names:
        folder, slash, _ = name.partition("/")
        by_class.setdefault(folder if slash else ONE_CLASS, []).append(name)
    rows = []
    for label, own in sorted(by_class.items()):
        count = max(1, round(held_out * len(own))) if len(own) > 1 else 0
        drawn = sorted(own, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
        rows += [(name, label, "test" if name in drawn else "train") for name in own]
    if all(split == "train" for _, _, split in rows):  # one video a class: the first is held out
        rows[0] = (*rows[0][:2], "test")
    return rows


def _captions(path: Path | None) -> dict[str, str] | None:
    """Caption of each path of a csv."""
    if path is None:
        return None
    rows = read_table(path)
    if not rows or not {"path", "caption"} <= rows[0].cells.keys():
        raise VideoError(f"{path}: needs the columns path,caption")
    return {row.text("path"): row.text("caption") for row in rows}
