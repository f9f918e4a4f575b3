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

from evatok.workflows.search import SearchConfig, _curate

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
    draw, killed, shards = random.Random(0), 0, 0
    most = config.clips // config.batch_size // (2 * kills)  # half of the work is left at the end
    at_work = {rank: start(config, folder, rank) for rank in range(PROCESSES)}
    failed = []
    while at_work:
        if killed < kills:  # by what is done, so that a fast machine is killed as often
            shards += draw.randint(1, most)
            while len(list((folder / "train").glob("*.parquet"))) < shards:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.03))
            rank = draw.choice(sorted(at_work))
            os.kill(at_work[rank], signal.SIGKILL)
        else:
            rank = min(at_work)
        _, status = os.waitpid(at_work.pop(rank), 0)
        if os.WIFSIGNALED(status):
            killed += 1
            at_work[rank] = start(config, folder, rank)
        elif status:
            failed.append(rank)
    if failed:
        sys.exit(f"processes {failed} failed")
    print(killed)


if __name__ == "__main__":
    main()
