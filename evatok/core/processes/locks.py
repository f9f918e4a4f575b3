"""Locks of files: one process at a time makes a thing, the others wait and find it made."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it; it is taken away in the end.

    The lock ends with the process, however that ends.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that makes the same", path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)
            # Its last holder has taken it away: what is locked is then nobody's.
            try:
                is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                is_there = False
            if not is_there:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
