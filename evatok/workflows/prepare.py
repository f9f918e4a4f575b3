"""`evatok data`: check a downloaded set, rewrite it for training, write its lists."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evatok.core.files import write_text
from evatok.core.paths import refuse_overwrite
from evatok.core.processes.pools import in_processes
from video.lists import read_list
from video.official import FOLDS, Entry, Survey, survey
from video.prepare import Recipe, check_file, prepare, prepared_name

REPORT = "prepared.json"
Progress = Callable[[int, int], None]


def check(
    name: str, root: Path, *, full: bool = False, workers: int = 1, progress: Progress | None = None
) -> tuple[Survey, dict[str, Any]]:
    """Compare a copy with its lists and look into every file.

    Args:
        name: ucf101, k600 or webvid.
        root: the copy.
        full: decode all frames, not the first alone.
        workers: processes.
        progress: called with files done and their number.

    Returns:
        What is there, and a JSON-able summary with `damaged`.

    Raises:
        VideoError: nothing of the set in this folder.
    """
    found = survey(name, root)
    present = found.present
    jobs = [(root / entry.file, full) for entry in present]
    damaged = []
    for number, (entry, wrong) in enumerate(
        zip(present, in_processes(check_file, jobs, workers), strict=True), 1
    ):
        if wrong:
            damaged.append({"file": entry.file, "reason": wrong})
        if progress is not None:
            progress(number, len(jobs))
    out = found.summary() | {"damaged": damaged, "decoded": "all" if full else "first frames"}
    return found, out | {"complete": not (found.missing or damaged or found.notes)}


def make(
    found: Survey,
    output: Path,
    recipe: Recipe,
    *,
    max_damaged: float = 0.05,
    larp_lists: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Rewrite what is there and write lists of what became of it.

    Args:
        found: of `check`.
        output: folder of the copies.
        recipe: how they are written.
        max_damaged: share of damaged files above which to stop.
        larp_lists: also lists as LARP's code reads them, paths below output's parent's parent.
        workers: processes.
        progress: called with files done and their number.

    Returns:
        JSON-able; also written to output/prepared.json.

    Raises:
        VideoError: see `video.prepare.prepare`.
    """
    entries = list({entry.file: entry for entry in found.present}.values())
    files = [entry.file for entry in entries]
    refuse_overwrite([output], [found.root], inside=True)
    refuse_overwrite([output / prepared_name(file) for file in files], [found.root])
    done = prepare(
        files,
        found.root,
        output,
        recipe,
        max_damaged=max_damaged,
        workers=workers,
        progress=progress,
    )
    good = {row.file for row in done if not row.error}
    kept = [entry for entry in found.present if entry.file in good]
    lists = _WRITERS[found.name](found, kept, output)
    if larp_lists:
        lists += _write_larp(found.name, kept, output)
    result = {
        "output": str(output),
        "files": len(good),
        "frames": sum(row.frames for row in done),
        "damaged": [{"file": row.file, "reason": row.error} for row in done if row.error],
        "settings": vars(recipe) | {},
        "lists": [str(path) for path in lists],
    }
    write_text(output / REPORT, json.dumps(result, indent=1))
    return result


def _ucf101_lists(found: Survey, kept: Sequence[Entry], output: Path) -> list[Path]:
    """classInd.txt and the lists of every split that the original has, without what is lost."""
    classes = sorted({entry.name for entry in kept})
    numbers = {name: number for number, name in enumerate(classes, 1)}
    text = "".join(f"{number} {name}\n" for name, number in numbers.items())
    paths = [write_text(output / "classInd.txt", text)]
    by_split = {split: [e.file for e in kept if e.split == split] for split in ("train", "test")}
    for fold in FOLDS:
        for split in ("train", "test"):
            files = by_split[split] if fold == 1 else _of_fold(found.root, split, fold, kept)
            if files is None:
                continue
            lines = [
                f"{prepared_name(f)} {numbers[f.split('/')[0]]}" if split == "train"
                else prepared_name(f)
                for f in files
            ]  # fmt: skip
            paths.append(write_text(output / f"{split}list{fold:02d}.txt", "\n".join(lines) + "\n"))
    return paths


def _of_fold(root: Path, split: str, fold: int, kept: Sequence[Entry]) -> list[str] | None:
    for folder in (root / "ucfTrainTestlist", root):
        path = folder / f"{split}list{fold:02d}.txt"
        if path.is_file():
            there = {entry.file for entry in kept}
            words = [line.split()[0] for line in read_list(path).splitlines() if line.strip()]
            return [word for word in words if word in there]
    return None


def _k600_lists(found: Survey, kept: Sequence[Entry], output: Path) -> list[Path]:
    """k600_SPLIT.csv with id,path,action,label; labels count the sorted classes of all splits."""
    names = sorted({entry.name for entry in kept})
    label = {name: number for number, name in enumerate(names)}
    paths = []
    for split in sorted({entry.split for entry in kept}):
        mine = sorted((e for e in kept if e.split == split), key=lambda e: e.file)
        rows = [
            [number, prepared_name(e.file), e.name, label[e.name]]
            for number, e in enumerate(mine, 1)
        ]
        paths.append(_table(output / f"k600_{split}.csv", ["id", "path", "action", "label"], rows))
    return paths


def _webvid_lists(found: Survey, kept: Sequence[Entry], output: Path) -> list[Path]:
    """SPLIT.csv with id,path,caption, and action and label, which are the same for all."""
    paths = []
    for split in sorted({entry.split for entry in kept}):
        rows = [
            [e.id, prepared_name(e.file), "webvid", 0, e.name] for e in kept if e.split == split
        ]
        columns = ["id", "path", "action", "label", "caption"]
        paths.append(_table(output / f"{split}.csv", columns, rows))
    return paths


_WRITERS: dict[str, Callable[[Survey, Sequence[Entry], Path], list[Path]]] = {
    "ucf101": _ucf101_lists,
    "k600": _k600_lists,
    "webvid": _webvid_lists,
}


def _write_larp(name: str, kept: Sequence[Entry], output: Path) -> list[Path]:
    """metadata/NAME_SPLIT.csv as LARP's code reads them: sorted by path, below `data/NAME`."""
    first = 0 if name == "ucf101" else 1
    names = sorted({entry.name for entry in kept})
    label = {n: number for number, n in enumerate(names)}
    paths = []
    for split in sorted({entry.split for entry in kept}):
        mine = sorted(prepared_name(e.file) for e in kept if e.split == split)
        action = {prepared_name(e.file): e.name for e in kept}
        rows = [
            [number, f"data/{name}/{file}", action[file], label[action[file]]]
            for number, file in enumerate(mine, first)
        ]
        part = "val" if (name, split) == ("ucf101", "test") else split
        path = output / "metadata" / f"{name}_{part}.csv"
        paths.append(_table(path, ["id", "path", "action", "label"], rows))
    return paths


def _table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_text(path, text.getvalue())
