"""Worker processes that end with their parent, however that ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T], R], jobs: Sequence[T], workers: int) -> Iterator[R]:
    """Results in the order of the jobs, by this process (1) or by others."""
    if workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # Spawned: forking a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent)
    try:
        yield from pool.map(work, jobs)
    finally:  # also when the one who asks stops
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """End this process, one that was spawned, as soon as its parent has ended.

    A parent that is killed cannot stop its workers, which would wait for its next job for ever.
    """
    parent = parent_process()
    assert parent is not None, "only a spawned process has a parent to wait for"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
