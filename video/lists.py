"""Lists of videos: the formats of UCF-101 and Kinetics, and plain folders.

Lists are UTF-8, with or without a byte order mark. What cannot be read is named with its file, line
and column.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from video.decoding.container import VideoError
from video.decoding.stills import PICTURES
from video.folder import SUFFIXES, pictures_under, videos_under

Split = Literal["train", "test"]
UCF_NAME = re.compile(r"v_([A-Za-z]+)_g(\d\d)_c\d\d\.\w+")


@dataclass(frozen=True)
class VideoItem:
    """One video of a list.

    Attributes:
        path: of the file; it may be missing.
        label: index among `classes`, −1 without classes.
        classes: the names of the data set's classes, of all its lists; () without classes.
        id: unique in its list, stable across machines.
    """

    path: Path
    label: int
    classes: tuple[str, ...] = field(repr=False)
    id: str

    @property
    def class_name(self) -> str:
        """Its class, "" without classes."""
        return self.classes[self.label] if self.label >= 0 else ""


@dataclass(frozen=True)
class Row:
    """One row of a csv.

    Attributes:
        path: of the file.
        line: on which the row ends.
        cells: by column.
    """

    path: Path
    line: int
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """A cell that must hold something.

        Raises:
            VideoError: it is empty.
        """
        if not self.cells[column].strip():
            raise self.wrong(column, "is empty")
        return self.cells[column]

    def seconds(self, column: str) -> int:
        """A time in whole seconds, as file names have it.

        Raises:
            VideoError: no time.
        """
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1e6:
            raise self.wrong(column, f"is no time in seconds: {text!r}")
        return int(value)

    def number(self, column: str) -> int:
        """A whole number from 0 on.

        Raises:
            VideoError: none.
        """
        text = self.text(column).strip()
        if not (text.isascii() and text.isdigit()):
            raise self.wrong(column, f"is no whole number: {text!r}")
        return int(text)

    def wrong(self, column: str, what: str) -> VideoError:
        """The error to raise for a cell."""
        return VideoError(f"{self.path}, line {self.line}: column {column} {what}")


def read_list(path: Path) -> str:
    """The text of a list.

    Raises:
        VideoError: it is not readable, or no text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise VideoError(f"{path}: list not readable ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise VideoError(f"{path}: list is not text ({error.reason})") from error


def read_table(path: Path) -> list[Row]:
    """The rows of a csv, without empty ones; a quoted cell may hold line breaks.

    Raises:
        VideoError: it is not readable, no csv, or a row has more or fewer cells than the first.
    """
    reader = csv.reader(io.StringIO(read_list(path), newline=""), strict=True)
    rows: list[Row] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(columns):
                raise VideoError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the first row names "
                    f"{len(columns)} columns: {','.join(columns)}"
                )
            rows.append(Row(path, reader.line_num, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise VideoError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_list(path).splitlines() if line.strip()]


def ucf101_class(file: str, known: Collection[str] = ()) -> str:
    """The class of a video of UCF-101, which its folder says, and without one its name.

    The set spells one class in two ways: `HandstandPushups/v_HandStandPushups_g01_c01.avi`.

    Args:
        file: as a list has it, or below the set's folder.
        known: classes, where a list of them is at hand: a folder of such a name is the class's.
    """
    *folders, name = file.split("/")
    match = UCF_NAME.fullmatch(name)
    for folder in folders:
        if folder in known or (match is not None and folder.lower() == match[1].lower()):
            return folder
    return file.split("/")[0] if match is None else match[1]


def read_ucf101(root: Path | str, split: Split = "train", fold: int = 1) -> list[VideoItem]:
    """Videos of one UCF-101 split, also of a subset of its classes.

    Args:
        root: holds the files that the lists name, and the lists in itself or in
            `ucfTrainTestlist`.
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
    used = {ucf101_class(name, known) for names in entries.values() for name in names}
    if not used <= known:
        raise VideoError(f"{folder}: classes {sorted(used - known)[:3]} are not in classInd.txt")
    names = tuple(sorted(used))
    index = {name: label for label, name in enumerate(names)}
    items = []
    for entry in entries[split]:
        name = ucf101_class(entry, known)
        items.append(VideoItem(root / entry, index[name], names, entry))
    return items


def listed_files(path: Path) -> list[str]:
    """Paths of a list's videos from its folder on, in its order.

    Args:
        path: a list of UCF-101 (`.txt`, a path a line, perhaps with a label), or a csv with a
            column `path` or the official columns of Kinetics.

    Raises:
        VideoError: not such a list, or it is empty.
    """
    if path.suffix.lower() == ".txt":
        names = [line.split()[0] for line in read_list(path).splitlines() if line.strip()]
    else:
        rows = read_table(path)
        if rows and "path" in rows[0].cells:
            names = [row.text("path") for row in rows]
        else:
            names = [entry.file for entry in _kinetics(path, path.parent)]
    if not names:
        raise VideoError(f"{path}: the list names no video")
    return names


def read_kinetics_csv(
    path: Path | str, root: Path | str, others: Sequence[Path | str] = ()
) -> list[VideoItem]:
    """Videos of a Kinetics list.

    Two formats: `id,path,action,label` (paths as they stand below `root`), and the official
    `label,youtube_id,time_start,time_end,split` (files `<id>_<start>_<end>.mp4`, six digits each,
    in `root` or in a folder of the class). Labels are those of the column `label` of the first
    format; without them they count the sorted classes of all lists.

    Args:
        path: the list.
        root: of the files.
        others: the data set's other lists: classes belong to the set, not to one list of it.

    Raises:
        VideoError: no such list, columns of neither format, a cell that cannot be read, or lists
            that disagree about a label.
    """
    root = Path(root)
    entries = list(_kinetics(Path(path), root))
    known = [*entries, *(e for other in others for e in _kinetics(Path(other), root))]
    classes = _classes(known)
    index = {name: label for label, name in enumerate(classes)}
    return [VideoItem(root / e.file, index[e.name], classes, e.file) for e in entries]


@dataclass(frozen=True)
class _Entry:
    row: Row
    name: str
    file: str
    label: int | None


def _kinetics(path: Path, root: Path) -> Iterator[_Entry]:
    rows = read_table(path)
    columns = set(rows[0].cells) if rows else set()
    if {"path", "action"} <= columns:
        for row in rows:
            label = row.number("label") if "label" in columns else None
            yield _Entry(row, row.text("action"), row.text("path"), label)
    elif {"label", "youtube_id", "time_start", "time_end"} <= columns:
        for row in rows:
            name, file = row.text("label"), kinetics_file(row)
            inside = Path(name) / file
            yield _Entry(row, name, str(inside if (root / inside).exists() else file), None)
    elif not rows:
        raise VideoError(f"{path}: the list has no rows")
    else:
        raise VideoError(
            f"{path}: columns {sorted(columns)} are neither id,path,action,label nor "
            "label,youtube_id,time_start,time_end"
        )


def kinetics_file(row: Row) -> str:
    """The name under which Kinetics files are kept.

    Raises:
        VideoError: a cell of the row cannot be read.
    """
    start, end = row.seconds("time_start"), row.seconds("time_end")
    return f"{row.text('youtube_id')}_{start:06d}_{end:06d}.mp4"


def _classes(entries: Sequence[_Entry]) -> tuple[str, ...]:
    """Names by label; a label that no list uses keeps its place."""
    if not entries or any(entry.label is None for entry in entries):
        return tuple(sorted({entry.name for entry in entries}))
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for entry in entries:
        assert entry.label is not None
        name = names.setdefault(entry.label, entry.name)
        label = labels.setdefault(entry.name, entry.label)
        if name != entry.name:
            raise entry.row.wrong("label", f"{entry.label} is {entry.name!r}, elsewhere {name!r}")
        if label != entry.label:
            raise entry.row.wrong("label", f"of {name!r} is {entry.label}, elsewhere {label}")
    most = max(10_000, 10 * len(names))
    if max(names) >= most:
        entry = max(entries, key=lambda e: e.label or 0)
        raise entry.row.wrong("label", f"{entry.label} is beyond {most}, for {len(names)} classes")
    return tuple(names.get(label, f"label {label}") for label in range(max(names) + 1))


def read_folder(root: Path | str) -> list[VideoItem]:
    """All videos below a folder, sorted by path, without labels.

    Raises:
        VideoError: no such folder, or no videos in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise VideoError(f"{root}: no such folder")
    paths = videos_under(root)
    if not paths:
        raise VideoError(f"{root}: no videos ({', '.join(SUFFIXES)}) in this folder")
    return [VideoItem(p, -1, (), p.relative_to(root).as_posix()) for p in paths]


def read_pictures(root: Path | str, split: Split) -> list[VideoItem]:
    """All pictures below a folder, each a video of one frame, sorted by path.

    Folders `train` and `val`, as ImageNet has them, are the splits; without them a folder has the
    same pictures for both. Where every picture lies in a folder of its split's, that is its class.

    Raises:
        VideoError: no such folder, or no pictures in it.
    """
    root = Path(root)
    names = {"train": "train", "test": "val"}
    is_split = all((root / name).is_dir() for name in names.values())
    parts = {part: root / name for part, name in names.items()} if is_split else {split: root}
    found: dict[str, list[Path]] = {}
    for part, folder in parts.items():
        if not folder.is_dir():
            raise VideoError(f"{folder}: no such folder")
        found[part] = pictures_under(folder)
        if not found[part]:
            raise VideoError(f"{folder}: no pictures ({', '.join(PICTURES)}) in this folder")
    inner = [path.relative_to(parts[part]).parts for part in found for path in found[part]]
    has_classes = all(len(place) > 1 for place in inner)
    classes = tuple(sorted({place[0] for place in inner})) if has_classes else ()
    index, items = {name: label for label, name in enumerate(classes)}, []
    for path in found[split]:
        label = index[path.relative_to(parts[split]).parts[0]] if classes else -1
        items.append(VideoItem(path, label, classes, path.relative_to(root).as_posix()))
    return items


def read_videos_csv(path: Path | str, root: Path | str, split: Split) -> list[VideoItem]:
    """Videos of one split of a csv with the columns path, class and split, as `evatok init` writes.

    Args:
        path: the list; `split` is train or test in each row, `path` counts from `root`.
        root: folder of the videos.
        split: which rows.

    Returns:
        Items in list order. Labels count the classes of both splits, sorted by name.

    Raises:
        VideoError: not such a list, a file named twice, or no row of the split.
    """
    path, root = Path(path), Path(root)
    rows = read_table(path)
    lacking = sorted({"path", "class", "split"} - set(rows[0].cells if rows else ()))
    if lacking:
        raise VideoError(f"{path}: needs the columns path,class,split; {lacking[0]} is missing")
    splits: dict[str, str] = {}
    for row in rows:
        name = row.text("path")
        if name in splits:
            raise row.wrong("path", f"names {name} a second time")
        splits[name] = row.text("split").strip()
        if splits[name] not in ("train", "test"):
            raise row.wrong("split", f"is {splits[name]!r}: write train or test")
    if split not in splits.values():
        raise VideoError(f"{path}: no row has the split {split}: set it for some videos")
    classes = tuple(sorted({row.text("class").strip() for row in rows}))
    index = {name: label for label, name in enumerate(classes)}
    return [
        VideoItem(
            root / row.text("path"), index[row.text("class").strip()], classes, row.text("path")
        )
        for row in rows
        if splits[row.text("path")] == split
    ]
