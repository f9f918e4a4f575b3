"""Checks of output paths: never over an input, never outside the output folder.

Every command asks here before it writes anything.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from evatok.core.errors import EvatokError

MAX_NAME = 160  # bytes of a name that comes from data: numbers and a suffix are added to it

AWKWARD = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|[. ]+$|^\.+')
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


def refuse_overwrite(
    outputs: Iterable[Path],
    inputs: Iterable[Path],
    *,
    inside: bool = False,
    links: bool = True,
) -> None:
    """Refuse to write over what is read, before anything is written.

    Spelling does not matter: links, hard links, `..` and letter case are followed to the file.

    Args:
        outputs: files, and folders that will be filled.
        inputs: files, and folders whose files are all read. Absent ones are passed over.
        inside: refuse outputs anywhere inside an input folder too: new files would join the set.

        links: look at every file of the input folders for one that an output is a link to; False
            where the folders are large and the outputs are no videos.

    Raises:
        EvatokError: names the output and the input.
    """
    inputs = [path for path in inputs if path.exists()]
    outputs = list(dict.fromkeys(outputs))
    places = [path.resolve() for path in inputs]
    for output in outputs:
        place = output.resolve()
        for path, source in zip(inputs, places, strict=True):
            is_same = place == source or (place.exists() and place.samefile(source))
            is_within = inside and source.is_dir() and _lies_in(place, source)
            if is_same or is_within:
                raise _refusal(output, path)
    there = {_identity(path): path for path in outputs if path.is_file()}
    if not there:
        return
    for path in inputs if links else [path for path in inputs if path.is_file()]:
        for file in _files(path):
            output = there.get(_identity(file))
            if output is not None:
                raise _refusal(output, file)


def paths_in(settings: BaseModel) -> list[Path]:
    """The files and folders that settings name to be read; not those of caches and of the run."""
    found: list[Path] = []

    def look(name: str, value: object) -> None:
        if isinstance(value, Path):
            if name not in ("cache_dir", "run_dir"):
                found.append(value)
        elif isinstance(value, BaseModel | dict):
            for key, inner in value.items() if isinstance(value, dict) else value:
                look(str(key), inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(name, inner)

    look("", settings)
    return found


def safe_names(names: Sequence[str]) -> list[str]:
    """A file name for each name that comes from data, all different, none a path.

    Names that every file system takes stay as they are. Others lose what is awkward (separators,
    control and reserved letters, Windows' devices, too many bytes, letters that this system's file
    names cannot hold) and gain a hash of the whole name. So do names that differ in case alone.

    Args:
        names: all different.
    """
    stems = [_stem(name) for name in names]
    folded = [unicodedata.normalize("NFC", stem).casefold() for stem in stems]
    first = {name: index for index, name in reversed(list(enumerate(folded)))}
    return [
        stem if stem == name and first[folded[index]] == index else f"{stem}-{_hash(name)}"
        for index, (name, stem) in enumerate(zip(names, stems, strict=True))
    ]


def printable(name: object) -> str:
    """A name that comes from data or from the disk, on one line of a message, table or page.

    Control characters (line breaks, ESC) become spaces, bytes of another encoding `\\udcXX`.
    """
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return CONTROL.sub(" ", text).encode("utf-8", "backslashreplace").decode()


def short_name(stem: str, room: int) -> str:
    """The stem of a file that is here, cut to leave `room` bytes of 255 for what is added.

    A cut one gains a hash of the whole.
    """
    limit = 255 - room
    return stem if len(os.fsencode(stem)) <= limit else f"{_cut(stem, limit - 9)}-{_hash(stem)}"


def _stem(name: str) -> str:
    stem = AWKWARD.sub("_", name) or "_"
    stem = "".join(letter if _can_be_named(letter) else "_" for letter in stem)
    if DEVICES.fullmatch(stem):
        stem = f"_{stem}"
    return _cut(stem, MAX_NAME)


def _can_be_named(letter: str) -> bool:
    if 0xD800 <= ord(letter) <= 0xDFFF:  # a byte of another encoding
        return False
    try:
        os.fsencode(letter)
    except UnicodeEncodeError:
        return False
    return True


def _cut(stem: str, limit: int) -> str:
    while len(os.fsencode(stem)) > limit:
        stem = stem[:-1]
    return stem


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _lies_in(place: Path, folder: Path) -> bool:
    """Whether a path, or a folder on its way, is `folder`, by whichever spelling."""
    return any(parent.exists() and parent.samefile(folder) for parent in place.parents)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or the files under a folder; links are followed, dangling ones are not."""
    if not path.is_dir():
        yield path
        return
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        key = _identity(Path(folder))
        if key in seen:  # a link upwards
            folders.clear()
            continue
        seen.add(key)
        yield from (file for file in (Path(folder, name) for name in names) if file.exists())


def _refusal(output: Path, source: Path) -> EvatokError:
    return EvatokError(f"{output} would be written over the input {source}: name another output")
