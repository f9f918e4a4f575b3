"""The recorder's processes: one at a time in a folder, and workers that end with their parent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from evatok.core.processes.pools import end_with_parent
from video.reading import VideoError

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOCK = ".lock"


@contextmanager
def folder_lock(root: Path) -> Iterator[Path | None]:
    """Hold the empty folder `root`.partial; renamed to `root` where the body ends well.

    None where `root` is there by the time that it is held. The lock ends with the process, however
    that ends; the next one empties the folder and begins anew.

    Raises:
        VideoError: another process holds it.
    """
    partial = root.with_name(root.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("a") as file:
        _lock(partial, file.fileno())
        try:
            for path in partial.iterdir():  # of a process that was killed
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
            if root.is_dir() and any(root.iterdir()):
                yield None
                return
            yield partial
            (partial / _LOCK).unlink()
            os.replace(partial, root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _lock(partial: Path, handle: int) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder that has ended since has taken the file away: what is locked is then no more.
        held = os.path.samestat(os.fstat(handle), os.stat(partial / _LOCK))
    except OSError:
        held = False
    if not held:
        raise VideoError(f"{partial}: another process records here; try again when it has ended")


def in_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int
) -> Iterator[Result]:
    """Results of a function in the order of its tasks, from processes with folders of their own."""
    # Spawned, because forking a process that has used torch's threads can hang.
    with (
        tempfile.TemporaryDirectory(prefix="evatok-") as directory,
        ProcessPoolExecutor(num_workers, get_context("spawn"), _begin, (directory,)) as pool,
    ):
        try:
            yield from pool.map(function, tasks)
        except VideoError as error:  # of a worker; raised here, it is told without a traceback
            raise VideoError(str(error)) from error


def _begin(directory: str) -> None:
    end_with_parent()
    os.chdir(tempfile.mkdtemp(dir=directory))
