"""Four processes that share a search and are killed in turn; started by test_search.py.

    python curation.py FOLDER SETTINGS.json KILLS

Forks, because a process that imports everything anew takes seconds to start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from evatok.search import SearchConfig, _curate

PROCESSES = 4


def start(config: SearchConfig, folder: Path, rank: int) -> int:
    """A child that does its share; its process number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            for _ in _curate(config, folder / "train", "train", rank, PROCESSES):
                pass
            code = 0
        finally:
            os._exit(code)
    return pid


def main() -> None:
    folder, settings, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    config = SearchConfig.model_validate(json.loads(settings.read_text()))
    torch.set_num_threads(1)
    draw, killed = random.Random(0), 0
    pids = [start(config, folder, rank) for rank in range(PROCESSES)]
    while killed < kills:
        rank = killed % PROCESSES
        time.sleep(draw.uniform(0.02, 0.2))
        os.kill(pids[rank], signal.SIGKILL)
        _, status = os.waitpid(pids[rank], 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"process {rank} had ended before kill {killed}: give it more to do")
        killed += 1
        pids[rank] = start(config, folder, rank)
    failed = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(failed):
        sys.exit(f"a process failed: {failed}")
    print(killed)


if __name__ == "__main__":
    main()
