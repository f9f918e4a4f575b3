"""`evatok data`: check a downloaded set, rewrite it for training, write its lists."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evatok.core.files import write_text
from evatok.core.paths import refuse_overwrite
from evatok.core.processes.pools import in_processes
from video.lists import read_list
from video.official import FOLDS, Entry, Survey, survey
from video.prepare import REPORT, Recipe, check_file, prepare, prepared_name

Progress = Callable[[int, int], None]
Lists = dict[str, str]  # the text of each, by its name below the folder of the copies


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
    # Before hours of rewriting: what is wrong with the set's own lists shows here.
    _lists_of(found, found.present, larp_lists)
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
    lists = _lists_of(found, kept, larp_lists)
    paths = [write_text(output / name, text) for name, text in lists.items()]
    result = {
        "output": str(output),
        "files": len(good),
        "frames": sum(row.frames for row in done),
        "damaged": [{"file": row.file, "reason": row.error} for row in done if row.error],
        "settings": vars(recipe) | {},
        "lists": [str(path) for path in paths],
    }
    write_text(output / REPORT, json.dumps(result, indent=1))
    return result


def _lists_of(found: Survey, kept: Sequence[Entry], larp_lists: bool) -> Lists:
    """The set's lists of these entries, and on request those of LARP's code."""
    lists = _LISTS[found.name](found, kept)
    return lists | _larp_lists(found.name, kept) if larp_lists else lists


def _ucf101_lists(found: Survey, kept: Sequence[Entry]) -> Lists:
    """classInd.txt and the lists of every split that the original has, without what is lost."""
    classes = sorted({entry.name for entry in kept})
    numbers = {name: number for number, name in enumerate(classes, 1)}
    lists = {"classInd.txt": "".join(f"{number} {name}\n" for name, number in numbers.items())}
    entries = {entry.file: entry for entry in kept}
    for fold in FOLDS:
        for split in ("train", "test"):
            if fold == 1:
                mine: list[Entry] | None = [entry for entry in kept if entry.split == split]
            else:
                mine = _of_fold(found.root, split, fold, entries)
            if mine is None:
                continue
            lines = [
                f"{prepared_name(e.file)} {numbers[e.name]}" if split == "train"
                else prepared_name(e.file)
                for e in mine
            ]  # fmt: skip
            lists[f"{split}list{fold:02d}.txt"] = "\n".join(lines) + "\n"
    return lists


def _of_fold(root: Path, split: str, fold: int, kept: Mapping[str, Entry]) -> list[Entry] | None:
    for folder in (root / "ucfTrainTestlist", root):
        path = folder / f"{split}list{fold:02d}.txt"
        if path.is_file():
            words = [line.split()[0] for line in read_list(path).splitlines() if line.strip()]
            return [kept[word] for word in words if word in kept]
    return None


def _k600_lists(found: Survey, kept: Sequence[Entry]) -> Lists:
    """k600_SPLIT.csv with id,path,action,label; labels count the sorted classes of all splits."""
    names = sorted({entry.name for entry in kept})
    label = {name: number for number, name in enumerate(names)}
    lists = {}
    for split in sorted({entry.split for entry in kept}):
        mine = sorted((e for e in kept if e.split == split), key=lambda e: e.file)
        rows = [
            [number, prepared_name(e.file), e.name, label[e.name]]
            for number, e in enumerate(mine, 1)
        ]
        lists[f"k600_{split}.csv"] = _table(["id", "path", "action", "label"], rows)
    return lists


def _webvid_lists(found: Survey, kept: Sequence[Entry]) -> Lists:
    """SPLIT.csv with id,path,caption, and action and label, which are the same for all."""
    lists = {}
    for split in sorted({entry.split for entry in kept}):
        rows = [
            [e.id, prepared_name(e.file), "webvid", 0, e.name] for e in kept if e.split == split
        ]
        lists[f"{split}.csv"] = _table(["id", "path", "action", "label", "caption"], rows)
    return lists


_LISTS: dict[str, Callable[[Survey, Sequence[Entry]], Lists]] = {
    "ucf101": _ucf101_lists,
    "k600": _k600_lists,
    "webvid": _webvid_lists,
}


def _larp_lists(name: str, kept: Sequence[Entry]) -> Lists:
    """metadata/NAME_SPLIT.csv as LARP's code reads them: sorted by path, below `data/NAME`."""
    first = 0 if name == "ucf101" else 1
    names = sorted({entry.name for entry in kept})
    label = {n: number for number, n in enumerate(names)}
    lists = {}
    for split in sorted({entry.split for entry in kept}):
        mine = sorted(prepared_name(e.file) for e in kept if e.split == split)
        action = {prepared_name(e.file): e.name for e in kept}
        rows = [
            [number, f"data/{name}/{file}", action[file], label[action[file]]]
            for number, file in enumerate(mine, first)
        ]
        part = "val" if (name, split) == ("ucf101", "test") else split
        lists[f"metadata/{name}_{part}.csv"] = _table(["id", "path", "action", "label"], rows)
    return lists


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
