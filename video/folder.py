"""The video files of a folder, the same in every command.

Links are followed, also to folders, each folder once on a way down. Files and folders whose names
begin with a dot are unfinished downloads or a system's notes (`._clip.mp4`) and are left out. A
link to nothing is listed: whoever reads it names it as damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from video.decoding.stills import PICTURES, is_animation

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".mts",
    ".m2ts", ".flv", ".wmv", ".3gp", ".ogv", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc",
)  # fmt: skip


def files_under(root: Path) -> Iterator[Path]:
    """All files below a folder, in no order; see the head of this file."""
    pending: list[tuple[Path, frozenset[str]]] = [(root, frozenset([os.path.realpath(root)]))]
    while pending:
        folder, above = pending.pop()
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                yield path
                continue
            place = os.path.realpath(path)
            if place not in above:  # else a link back up, without end
                pending.append((path, above | {place}))


def is_video(path: Path) -> bool:
    """Whether a file is read as video: by its suffix; a `.webp` if it is animated."""
    return path.suffix.lower() in SUFFIXES or is_animation(path)


def videos_under(root: Path) -> list[Path]:
    """All video files below a folder, sorted."""
    return sorted(path for path in files_under(root) if is_video(path))


def pictures_under(root: Path) -> list[Path]:
    """All still pictures below a folder, sorted."""
    found = (path for path in files_under(root) if path.suffix.lower() in PICTURES)
    return sorted(path for path in found if not is_animation(path))
