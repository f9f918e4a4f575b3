"""Two workers with endless jobs; started and killed by test_pools.py."""

from __future__ import annotations

import time

from evatok.core.processes.pools import in_processes


def endless(number: int) -> None:
    print("works", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    list(in_processes(endless, range(8), 2))
