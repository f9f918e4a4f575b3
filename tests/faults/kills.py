"""Every long job killed with -9 at random moments, started again, compared with an undisturbed one.

`python tests/faults/kills.py --kills 5 --seed 1`; one row a job: kills, restarts, what differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import cases
import fuzz
from jobs import JOBS, Job

GRACE = 15  # seconds in which the processes of a killed job must end by themselves


def lay(good: Path, needs: tuple[str, ...], folder: Path) -> Path:
    """A folder with copies of what a job needs."""
    folder.mkdir(parents=True)
    for part in needs:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (good / part).is_dir():
            shutil.copytree(good / part, folder / part)
        else:
            shutil.copy(good / part, folder / part)
    return folder


def seconds_of(path: Path) -> None:
    """Take the time out of a record: it is the only number that may differ."""
    if path.suffix == ".json" and path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps([row | {"seconds": 0} for row in rows]), encoding="utf-8")


def killed(name: str, job: Job, good: Path, work: Path, kills: int, draw: random.Random) -> str:
    """ "ok", or what went wrong."""
    whole = lay(good, job.needs, work / f"{name} whole")
    ending = cases.run(cases.command(job.words), whole, seconds=300)
    if ending.outcome() != "ok":
        return f"undisturbed: {ending.outcome()}: {ending.stderr[-300:]}"
    folder = lay(good, job.needs, work / f"{name} killed")
    for _ in range(kills):
        moment = draw.uniform(0, 0.9) * ending.seconds
        end = cases.run(cases.command(job.words), folder, seconds=moment, grace=GRACE)
        if end.orphans:
            return f"{end.orphans} processes live on {GRACE} s after it was killed"
        if end.status is not None and end.outcome() != "ok":
            return f"after a kill: {end.outcome()}: {end.stderr[-300:]}"
    last = cases.run(cases.command(job.words), folder, seconds=300)
    if last.outcome() != "ok":
        return f"restarted: {last.outcome()}: {last.stderr[-300:]}"
    for one in (whole, folder):
        seconds_of(one / job.makes)
    return difference(job.result(whole), job.result(folder))


def difference(whole: dict[str, str], other: dict[str, str]) -> str:
    """ "ok", or the files that are not the same."""
    wrong = [
        f"{'extra' if path not in whole else 'missing' if path not in other else 'differs'}: {path}"
        for path in sorted(whole.keys() | other.keys())
        if whole.get(path) != other.get(path)
    ]
    return "; ".join(wrong[:4]) or "ok"


def rank_killed(good: Path, work: Path, draw: random.Random) -> str:
    """Two processes train; one dies; the other must end, and the run go on to the same weights."""
    job = JOBS["train proxy"]

    def start(folder: Path, port: int) -> list[int]:
        return [_rank(folder, rank, port, job) for rank in (0, 1)]

    whole = lay(good, job.needs, work / "ranks whole")
    started = time.monotonic()
    codes = [wait_for(pid, 300) for pid in start(whole, _port())]
    if codes != [0, 0]:
        return f"undisturbed: statuses {codes}: {(whole / 'stderr-0').read_text()[-300:]}"
    length = time.monotonic() - started
    folder = lay(good, job.needs, work / "ranks killed")
    pids = start(folder, _port())
    time.sleep(draw.uniform(0.3, 0.9) * length)
    victim = draw.randrange(2)
    with suppress(ProcessLookupError):  # it was quicker
        os.kill(pids[victim], signal.SIGKILL)
    left = wait_for(pids[1 - victim], 60)
    wait_for(pids[victim], 1)
    if left is None:
        return "the other process still waits after 60 s"
    codes = [wait_for(pid, 300) for pid in start(folder, _port())]
    if codes != [0, 0]:
        return f"restarted: statuses {codes}: {(folder / 'stderr-0').read_text()[-300:]}"
    return difference(job.result(whole), job.result(folder))


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _rank(folder: Path, rank: int, port: int, job: Job) -> int:
    """Start one process of two, as torchrun does."""
    pid = os.fork()
    if pid == 0:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        os.environ |= {key: str(value) for key, value in place.items()}
        cases.be(
            cases.command(job.words),
            folder,
            os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT),
        )
    return pid


def wait_for(pid: int, seconds: float) -> int | None:
    """Exit status; None, and the process killed, where time ran out."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> int:
    """Print a row a job; 1 if any job ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="of each job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", default="", help="only these, with commas")
    parser.add_argument("--good", type=Path, help="folder of good files that an earlier run made")
    parser.add_argument("--output", type=Path, default=Path("out/faults"))
    asked = parser.parse_args()
    output = asked.output.resolve() / "kills"
    shutil.rmtree(output, ignore_errors=True)
    good = fuzz.good_files(asked.good, asked.output)
    fuzz.warm()
    names = [name for name in asked.jobs.split(",") if name] or [*JOBS, "two processes"]
    failed = 0
    for name in names:
        draw = random.Random(f"{asked.seed}/{name}")
        if name == "two processes":
            said = rank_killed(good, output, draw)
        else:
            said = killed(name, JOBS[name], good, output, asked.kills, draw)
        failed += said != "ok"
        print(f"kill -9 of {name} (seed {asked.seed}): {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
