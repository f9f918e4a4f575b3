"""Files that are there whole or not at all, and the folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 under a temporary name, then rename; folders are made.

    A reader, or a process that is killed here, never meets half of it.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def cache_dir() -> Path:
    """Folder of weights, features and compiled code: `EVATOK_CACHE`, or ~/.cache/evatok."""
    chosen = os.environ.get("EVATOK_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "evatok"
