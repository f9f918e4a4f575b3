"""One thread of torch for each piece of work: the same bits on any number of cores.

A product or a convolution that several threads share is cut otherwise for another number of them,
and its sums are rounded otherwise. Pieces that one thread does whole can be done side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    """Results in order of the jobs, each done by one thread; as many at a time as torch may use.

    `work` runs in other threads: it must set its own `torch.no_grad`.
    """
    threads = min(torch.get_num_threads(), len(jobs))
    if threads <= 1:
        with one_thread():
            return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads, "torch", torch.set_num_threads, (1,)) as pool:
        return list(pool.map(work, jobs))
