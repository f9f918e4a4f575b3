"""Lists of videos: the formats of UCF-101 and Kinetics, and plain folders."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from video.io import SUFFIXES, VideoError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class VideoItem:
    """One video of a list.

    Attributes:
        path: of the file; it may be missing.
        label: index among the list's class names, −1 without classes.
        class_name: "" without classes.
        id: unique in its list, stable across machines.
    """

    path: Path
    label: int
    class_name: str
    id: str


def read_list(path: Path) -> str:
    """The text of a list.

    Raises:
        VideoError: it is not readable, or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise VideoError(f"{path}: list not readable ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise VideoError(f"{path}: list is not text ({error.reason})") from error


def videos_under(root: Path) -> list[Path]:
    """All video files under a folder, sorted; hidden ones are those of an unfinished download."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_list(path).splitlines() if line.strip()]


def read_ucf101(root: Path | str, split: Split = "train", fold: int = 1) -> list[VideoItem]:
    """Videos of one UCF-101 split, also of a subset of its classes.

    Args:
        root: holds a folder for each class, and the lists in itself or in `ucfTrainTestlist`.
        split: "train" reads trainlist0N.txt, "test" testlist0N.txt.
        fold: N.

    Returns:
        Items in list order. Labels count the classes of classInd.txt that the train and test lists
        use, sorted by name: a subset has no gaps.

    Raises:
        VideoError: no lists, or a line that fits none of the classes.
    """
    root = Path(root)
    folder = root if (root / "classInd.txt").is_file() else root / "ucfTrainTestlist"
    if not (folder / "classInd.txt").is_file():
        raise VideoError(f"{root}: no classInd.txt here or in ucfTrainTestlist")
    known = {line.split()[-1] for line in _lines(folder / "classInd.txt")}
    entries: dict[str, list[str]] = {}
    for part in ("train", "test"):
        path = folder / f"{part}list{fold:02d}.txt"
        if path.is_file() or part == split:
            entries[part] = [line.split()[0] for line in _lines(path)]
    used = {name.split("/")[0] for names in entries.values() for name in names}
    if not used <= known:
        raise VideoError(f"{folder}: classes {sorted(used - known)[:3]} are not in classInd.txt")
    names = sorted(used)
    index = {name: label for label, name in enumerate(names)}
    items = []
    for entry in entries[split]:
        name = entry.split("/")[0]
        items.append(VideoItem(root / entry, index[name], name, entry))
    return items


def read_kinetics_csv(path: Path | str, root: Path | str) -> list[VideoItem]:
    """Videos of a Kinetics list.

    Two formats: `id,path,action,label` (paths as they stand below `root`), and the official
    `label,youtube_id,time_start,time_end,split` (files `<id>_<start>_<end>.mp4`, six digits each,
    in `root` or in a folder of the class).

    Raises:
        VideoError: no such list, or columns of neither format.
    """
    path, root = Path(path), Path(root)
    rows = list(csv.DictReader(_lines(path)))
    columns = set(rows[0]) if rows else set()
    if {"path", "action"} <= columns:
        pairs = [(row["action"], row["path"]) for row in rows]
    elif {"label", "youtube_id", "time_start", "time_end"} <= columns:
        pairs = []
        for row in rows:
            span = f"{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            name = f"{row['youtube_id']}_{span}.mp4"
            inside = Path(row["label"]) / name
            pairs.append((row["label"], str(inside if (root / inside).exists() else name)))
    else:
        raise VideoError(
            f"{path}: columns {sorted(columns)} are neither id,path,action,label nor "
            "label,youtube_id,time_start,time_end"
        )
    names = sorted({name for name, _ in pairs})
    index = {name: label for label, name in enumerate(names)}
    return [VideoItem(root / file, index[name], name, file) for name, file in pairs]


def read_folder(root: Path | str) -> list[VideoItem]:
    """All videos below a folder, sorted by path, without labels.

    Raises:
        VideoError: no such folder, or no videos in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise VideoError(f"{root}: no such folder")
    paths = videos_under(root)
    paths = [p for p in paths if not p.name.startswith(".")]
    if not paths:
        raise VideoError(f"{root}: no videos ({', '.join(SUFFIXES)}) in this folder")
    return [VideoItem(p, -1, "", p.relative_to(root).as_posix()) for p in paths]
