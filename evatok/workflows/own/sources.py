"""Own videos as they come: a folder, a list of files, or WebDataset shards.

| given | classes | captions |
| --- | --- | --- |
| a folder | its sub-folders, or one class | of `--captions`, a .csv or .jsonl |
| a list, .csv or .jsonl | column `class` or `label`, or the folders | column `caption` or `text` |
| .tar shards, or a folder of them | `.cls`, or `class` in `.json` | `.txt`, `caption` in `.json` |
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evatok.core.files import atomic_folder
from evatok.core.paths import safe_names
from video.decoding.container import VideoError
from video.folder import SUFFIXES, is_video, videos_under
from video.lists import Split, read_list, read_table

ONE_CLASS = "video"  # of videos that no folder and no list gives a class
INDEX = "index.json"
LARGEST_TEXT = 1 << 20  # bytes of a caption, a class or their JSON in a shard
# Words for the same: ours first, then those of common data sets.
ALIASES = {
    "path": ("path", "file_name", "video", "file"),
    "class": ("class", "label", "action"),
    "caption": ("caption", "text"),
    "split": ("split",),
}
HELD_OUT = ("test", "val", "valid", "validation")


@dataclass
class SourceScan:
    """Videos, classes and captions found, keyed by path from `root`.

    Attributes:
        kind: in words.
        root: folder from which paths count.
        classes: of each video, in order.
        captions: of those that have one.
        splits: of those that a list says it of.
    """

    kind: str
    root: Path
    classes: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)

    def add(self, path: str, row: Mapping[str, str]) -> None:
        """Take up a video with what is known of it; an empty cell says nothing."""
        self.classes[path] = row.get("class", "").strip() or class_of(path)
        if row.get("caption", "").strip():
            self.captions[path] = row["caption"].strip()
        split = row.get("split", "").strip().lower()
        if split:
            if split not in ("train", *HELD_OUT):
                raise VideoError(f"{path}: split {split!r}: write train or test")
            self.splits[path] = "train" if split == "train" else "test"


def class_of(path: str) -> str:
    """The class that a path tells: its first folder."""
    folder, slash, _ = path.partition("/")
    return folder if slash else ONE_CLASS


def look(data: Path, captions: Path | None, unpacked: Path) -> SourceScan:
    """List the videos that are meant, without opening them.

    Args:
        data: folder, list or shard.
        captions: .csv or .jsonl with path and caption; the only captions if given.
        unpacked: where shards are unpacked, once.

    Raises:
        VideoError: nothing there, or a list or shard that cannot be read.
    """
    found = _look(data, unpacked)
    if captions is not None:
        if captions.is_dir():
            raise VideoError(f"{captions} is a folder: give the .csv or .jsonl file of captions")
        rows = dict(_rows(captions, found.root, ("path", "caption")))
        known = found.classes.keys() & rows.keys()
        if not known:
            raise VideoError(
                f"{captions}: names no video of {found.root}, such as {next(iter(found.classes))}: "
                "write paths as they are from that folder on"
            )
        found.captions = {p: rows[p]["caption"].strip() for p in known if rows[p]["caption"]}
    return found


def _look(data: Path, unpacked: Path) -> SourceScan:
    if data.is_file():
        if data.suffix in (".csv", ".jsonl"):
            found = SourceScan(f"list {data.name}", data.parent)
            for path, row in _rows(data, data.parent, ("path",)):
                if path in found.classes:
                    raise VideoError(f"{data}: names {path} a second time")
                found.add(path, row)
            return _not_empty(found, data)
        if data.suffix == ".tar":
            return _not_empty(_shards([data], unpacked), data)
        what = "is one video" if is_video(data) else "is no folder, list or shard"
        raise VideoError(f"{data} {what}: give a folder of videos, a .csv, .jsonl or .tar")
    if not data.is_dir():
        raise VideoError(f"{data}: no such folder")
    videos = videos_under(data)
    shards = sorted(data.glob("*.tar"))
    if shards and not videos:
        return _not_empty(_shards(shards, unpacked), data)
    found = SourceScan("folder", data)
    for path in videos:
        found.add(path.relative_to(data).as_posix(), {})
    inner = {name.partition("/")[0] for name in found.classes if "/" in name}
    found.kind = f"{len(inner)} sub-folders, the classes" if inner else "one folder, no classes"
    if inner and ONE_CLASS in found.classes.values():
        found.kind += f"; videos beside them are of class {ONE_CLASS!r}"
    return _not_empty(found, data)


def _not_empty(found: SourceScan, data: Path) -> SourceScan:
    if not found.classes:
        raise VideoError(f"{data}: no videos there ({', '.join(SUFFIXES[:6])} …)")
    return found


# --- lists ---


def _rows(path: Path, root: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Path from `root` and cells of each row of a .csv or .jsonl, by our names."""
    rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    for line, cells in rows:
        row = {
            ours: str(cells[name])
            for ours, names in ALIASES.items()
            for name in reversed(names)
            if cells.get(name) is not None
        }
        lacking = [name for name in needed if name not in row]
        if lacking or not row["path"].strip():
            raise VideoError(
                f"{path}, line {line}: no {(lacking or ['path'])[0]}; "
                f"it has {', '.join(map(str, cells)) or 'nothing'}"
            )
        name = Path(row["path"].strip())
        if name.is_absolute() and name.is_relative_to(root.absolute()):
            name = name.relative_to(root.absolute())
        yield name.as_posix(), row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for row in read_table(path):
        yield row.line, row.cells


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_list(path).split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise VideoError(f"{path}, line {number}: no JSON object ({error})") from error
            if not isinstance(value, dict):
                raise VideoError(f"{path}, line {number}: no JSON object: {line.strip()[:40]}")
            yield number, value


# --- shards ---


def _shards(shards: list[Path], unpacked: Path) -> SourceScan:
    """Unpack shards, each whole or not at all, and list their videos."""
    found = SourceScan(f"{len(shards)} WebDataset shards, unpacked into {unpacked}", unpacked)
    for shard in shards:
        (stem,) = safe_names([shard.stem])
        folder = unpacked / stem
        if not (folder / INDEX).is_file():
            with atomic_folder(folder) as partial:
                rows = _unpack(shard, partial)
                (partial / INDEX).write_text(json.dumps(rows), encoding="utf-8")
        for name, row in json.loads((folder / INDEX).read_text(encoding="utf-8")).items():
            # the shard's folder is no class
            found.add(f"{stem}/{name}", {"class": ONE_CLASS} | row)
    return found


def _unpack(shard: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Write the videos of a shard under safe names: what is told of each, by file name.

    An archive is read from front to back and only its plain files; no name of it becomes a path.
    """
    videos: dict[str, str] = {}  # file name by key
    labels: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(shard, "r|*") as archive:
            for member in archive:
                folders, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                file = archive.extractfile(member) if member.isfile() and stem else None
                if file is None:
                    continue
                key, suffix = f"{folders}/{stem}", f".{suffix.lower()}"
                if suffix in SUFFIXES:
                    if key in videos:
                        raise VideoError(f"{shard}: holds two videos {key.lstrip('/')}")
                    (name,) = safe_names([key.lstrip("/")])
                    videos[key] = name + suffix
                    with (folder / videos[key]).open("xb") as out:
                        shutil.copyfileobj(file, out)
                elif suffix in (".txt", ".cls", ".json"):
                    labels.setdefault(key, {}).update(
                        _labels_in(shard, member, file.read(LARGEST_TEXT))
                    )
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise VideoError(f"{shard}: damaged archive ({error}): fetch it again") from error
    return {name: labels.get(key, {}) for key, name in videos.items()}


def _labels_in(shard: Path, member: tarfile.TarInfo, raw: bytes) -> dict[str, str]:
    try:
        text = raw.decode("utf-8").strip()
        if not member.name.endswith(".json"):
            return {"caption" if member.name.endswith(".txt") else "class": text}
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VideoError(f"{shard}: {member.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        return {}
    return {
        ours: str(value[name])
        for ours in ("class", "caption", "split")
        for name in reversed(ALIASES[ours])
        if value.get(name) is not None
    }
