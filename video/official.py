"""Downloaded copies of the public sets against their official lists.

| set | layout | lists |
| --- | --- | --- |
| UCF-101 | `CLASS/v_CLASS_gNN_cNN.avi` | `ucfTrainTestlist/{classInd,trainlist0N,testlist0N}.txt` |
| Kinetics-600 | `SPLIT/[CLASS/]ID_START_END.mp4` | csv: official, or `id,path,action,label` |
| WebVid | any | csv with `videoid,name[,page_dir]`, files `[PAGE_DIR/]VIDEOID.mp4` |

Counts of UCF-101 are those of its lists (split 1: 9 537 and 3 783). Kinetics loses videos with the
years, so that its counts are told and nothing insists on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video.decoding.container import VideoError
from video.folder import videos_under
from video.lists import UCF_NAME, Row, kinetics_file, read_list, read_table, ucf101_class

UCF_COUNTS = {"train": 9537, "test": 3783}
UCF_CLASSES = 101
FIRST_TRAIN_GROUP = 8  # split 1: groups 1 to 7 are the test list
FOLDS = (1, 2, 3)
SPLITS = {"train": "train", "val": "val", "validate": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """A video that a list names, or that is there.

    Attributes:
        file: below the folder.
        name: its class; of WebVid its caption.
        split: "train", "val" or "test".
        id: of WebVid; else "".
    """

    file: str
    name: str
    split: str
    id: str = ""


@dataclass
class Survey:
    """Expected and present videos of a set.

    Attributes:
        name: of the set.
        root: its folder.
        entries: that the lists name.
        missing: entries without a file.
        extra: videos that no list names.
        notes: what a reader should know, each a sentence.
    """

    name: str
    root: Path
    entries: list[Entry]
    missing: list[Entry] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def present(self) -> list[Entry]:
        """Entries whose files are there."""
        gone = {entry.file for entry in self.missing}
        return [entry for entry in self.entries if entry.file not in gone]

    def summary(self) -> dict[str, Any]:
        """JSON-able: counts by split and by class, what is missing, notes."""
        listed, gone = (
            Counter(e.split for e in self.entries),
            Counter(e.split for e in self.missing),
        )
        rows = [
            {"split": split, "listed": count, "there": count - gone[split]}
            for split, count in sorted(listed.items())
        ]
        out: dict[str, Any] = {
            "set": self.name,
            "root": str(self.root),
            "splits": rows,
            "missing": len(self.missing),
            "extra": len(self.extra),
            "first_missing": [entry.file for entry in self.missing[:5]],
            "first_extra": self.extra[:5],
            "notes": self.notes,
        }
        if self.name != "webvid":
            classes, lost = (
                Counter(e.name for e in self.entries),
                Counter(e.name for e in self.missing),
            )
            out["classes"] = len(classes)
            out["incomplete_classes"] = [
                {"class": name, "listed": classes[name], "there": classes[name] - lost[name]}
                for name in sorted(lost)
            ]
        return out


def survey_ucf101(root: Path) -> Survey:
    """UCF-101 against split 1; its three lists where they are, else the rule that split 1 follows.

    Raises:
        VideoError: neither lists nor videos in this folder.
    """
    lists = next(
        (p for p in (root / "ucfTrainTestlist", root) if (p / "classInd.txt").is_file()), None
    )
    there = _videos(root)
    if lists is None:
        return _ucf101_by_rule(root, there)
    classes = {
        line.split()[-1] for line in read_list(lists / "classInd.txt").splitlines() if line.strip()
    }
    entries = [
        Entry(file, ucf101_class(file, classes), split)
        for split in ("train", "test")
        for file in _first_words(lists / f"{split}list01.txt")
    ]
    survey = _compared(Survey("ucf101", root, entries), there)
    unused = classes - {entry.name for entry in entries}
    if unused:
        survey.notes.append(
            f"{len(unused)} classes of classInd.txt are in no list: "
            f"{', '.join(sorted(unused)[:3])} …"
        )
    _count_ucf101(survey)
    return survey


def _ucf101_by_rule(root: Path, there: Sequence[str]) -> Survey:
    entries = []
    for file in there:
        match = UCF_NAME.fullmatch(file.rpartition("/")[2])
        if match is not None and file.endswith(".avi"):
            split = "train" if int(match[2]) >= FIRST_TRAIN_GROUP else "test"
            entries.append(Entry(file, ucf101_class(file), split))
    if not entries:
        raise VideoError(f"{root}: neither ucfTrainTestlist nor files v_CLASS_gNN_cNN.avi are here")
    survey = Survey("ucf101", root, entries)
    survey.extra = sorted(set(there) - {entry.file for entry in entries})
    survey.notes.append(
        "no ucfTrainTestlist here: split 1 is told from the file names (groups 8 to 25 train); "
        "splits 2 and 3, and which videos are missing, cannot be"
    )
    _count_ucf101(survey)
    return survey


def _count_ucf101(survey: Survey) -> None:
    counts = Counter(entry.split for entry in survey.entries)
    for split, expected in UCF_COUNTS.items():
        if counts[split] != expected:
            survey.notes.append(
                f"{counts[split]} {split} videos are listed; the whole set has {expected}"
            )
    classes = len({entry.name for entry in survey.entries})
    if classes != UCF_CLASSES:
        survey.notes.append(f"{classes} classes are listed; the whole set has {UCF_CLASSES}")


def survey_kinetics(root: Path) -> Survey:
    """Kinetics-600 against the csv files in the folder or in `annotations`.

    Raises:
        VideoError: no list, or columns of neither format.
    """
    tables = _tables(root, (("youtube_id", "label", "time_start", "time_end"), ("path", "action")))
    if not tables:
        raise VideoError(
            f"{root}: no list: put train.csv and val.csv (label,youtube_id,time_start,time_end,"
            "split, or id,path,action,label) here or in annotations"
        )
    there = _videos(root)
    by_name: dict[str, list[str]] = {}
    for file in there:
        by_name.setdefault(file.rpartition("/")[2], []).append(file)
    entries = []
    for table, rows in tables:
        for row in rows:
            split = _split_of(table, row)
            if "youtube_id" in row.cells:
                name, action = kinetics_file(row), row.text("label")
            else:
                name, action = Path(row.text("path")).name, row.text("action")
            places = by_name.get(name, [])
            inside = [place for place in places if split in place.split("/")[0]]
            file = (inside or places or [f"{split}/{name}"])[0]
            entries.append(Entry(file, action, split))
    survey = _compared(Survey("k600", root, entries), there)
    survey.notes.append(
        "videos of Kinetics vanish: public copies have 383 000 to 426 000 for training, and LARP's "
        "validation list has 29 739 rows of 599 classes"
    )
    return survey


def survey_webvid(root: Path) -> Survey:
    """WebVid against the csv files in the folder: `videoid`, `name`, perhaps `page_dir`.

    Raises:
        VideoError: no list.
    """
    tables = _tables(root, (("videoid", "name"),))
    if not tables:
        raise VideoError(
            f"{root}: no list: put a csv with videoid,name here, such as results_2M_val.csv"
        )
    there = _videos(root)
    by_stem = {Path(file).stem: file for file in there}
    entries = []
    for table, rows in tables:
        for row in rows:
            number, page = row.text("videoid"), row.cells.get("page_dir", "")
            expected = "/".join(part for part in (page, f"{number}.mp4") if part)
            split = "val" if "val" in table.stem.lower() else "train"
            entries.append(Entry(by_stem.get(number, expected), row.cells["name"], split, number))
    return _compared(Survey("webvid", root, entries), there)


SURVEYS = {"ucf101": survey_ucf101, "k600": survey_kinetics, "webvid": survey_webvid}


def survey(name: str, root: Path) -> Survey:
    """Look at a copy of the set of that name.

    Raises:
        VideoError: no such folder, or nothing of the set in it.
    """
    if not root.is_dir():
        raise VideoError(f"{root}: no such folder")
    return SURVEYS[name](root)


def _compared(survey: Survey, there: Sequence[str]) -> Survey:
    """A survey with what is missing and what is too much; each file once a split."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in survey.entries:
        first.setdefault((entry.file, entry.split), entry)
    if again := len(survey.entries) - len(first):
        survey.notes.append(f"{again} rows name a file that another row names: left out")
        survey.entries = list(first.values())
    files = set(there)
    survey.missing = [entry for entry in survey.entries if entry.file not in files]
    survey.extra = sorted(files - {entry.file for entry in survey.entries})
    return survey


def _videos(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in videos_under(root)]


def _tables(root: Path, layouts: Iterable[Sequence[str]]) -> list[tuple[Path, list[Row]]]:
    """The csv files of some layouts, each told by its first column.

    Raises:
        VideoError: a file has the first column of a layout, but not the others.
    """
    out = []
    for folder in (root, root / "annotations"):
        for path in sorted(folder.glob("[!.]*.csv")):
            rows = read_table(path)
            columns = set(rows[0].cells) if rows else set()
            layout = next((layout for layout in layouts if layout[0] in columns), None)
            if layout is None:
                continue
            missing = [column for column in layout if column not in columns]
            if missing:
                raise VideoError(f"{path}: has no column {missing[0]}, only {','.join(columns)}")
            out.append((path, rows))
    return out


def _split_of(table: Path, row: Row) -> str:
    told = row.cells.get("split", "").strip()
    if told in SPLITS:
        return SPLITS[told]
    found = next((split for word, split in SPLITS.items() if word in table.stem.lower()), None)
    if found is None:
        raise VideoError(f"{table}: neither a column split nor train, val or test in its name")
    return found


def _first_words(path: Path) -> list[str]:
    return [line.split()[0] for line in read_list(path).splitlines() if line.strip()]
