"""Every long job without room for what it writes: a limit of file size, and a small tmpfs.

Each must say one line and exit with 2, leave what was there before, and succeed when there is room.
`python tests/faults/disk.py --seed 1`.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cases
import fuzz
from jobs import JOBS, Job
from kills import difference, lay, seconds_of


def limited(words: list[str], size: int) -> Callable[[], int]:
    """The command, where no file may grow beyond so many bytes."""

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return cases.command(words)()

    return work


def full(words: list[str]) -> Callable[[], int]:
    """The command with a full device as standard output."""

    def work() -> int:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        code = cases.command(words)()
        sys.stdout.flush()
        return code

    return work


def too_small(name: str, job: Job, good: Path, work: Path, draw: random.Random) -> list[str]:
    """What went wrong, a line each."""
    whole = lay(good, job.needs, work / f"{name} whole")
    ending = cases.run(cases.command(job.words), whole, seconds=300)
    if ending.outcome() != "ok":
        return [f"undisturbed: {ending.outcome()}: {ending.stderr[-300:]}"]
    seconds_of(whole / job.makes)
    found = whole / job.makes
    files = [found] if found.is_file() else [f for f in found.rglob("*") if f.is_file()]
    sizes = [f.stat().st_size for f in files]
    largest, wrong = max(sizes), []
    folder = lay(good, job.needs, work / f"{name} limited")
    for size in (0, draw.randrange(1, largest), largest * 2 // 3):
        end = cases.run(limited(list(job.words), size), folder, seconds=300)
        if end.outcome() != "refused":
            wrong.append(f"files of at most {size} bytes: {end.outcome()}: {end.stderr[-200:]}")
    end = cases.run(cases.command(job.words), folder, seconds=300)
    if end.outcome() != "ok":
        return [*wrong, f"with room again: {end.outcome()}: {end.stderr[-200:]}"]
    seconds_of(folder / job.makes)
    said = difference(job.result(whole), job.result(folder))
    return [*wrong, *([] if said == "ok" else [f"with room again: {said}"])]


def on_tmpfs(name: str, job: Job, good: Path, work: Path) -> list[str]:
    """As `too_small`, in a file system that is full (needs the right to mount)."""
    whole = lay(good, job.needs, work / f"{name} sized")
    before = _bytes(whole)
    if cases.run(cases.command(job.words), whole, seconds=300).outcome() != "ok":
        return ["undisturbed: it fails"]
    place = work / f"{name} tmpfs"
    place.mkdir()
    room = before + max(8192, (_bytes(whole) - before) // 2)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "faults", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return ["no right to mount a tmpfs: left out"]
    try:
        folder = lay(good, job.needs, place / "case")
        kept = {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        end = cases.run(cases.command(job.words), folder, seconds=300)
        wrong = [] if end.outcome() == "refused" else [f"{end.outcome()}: {end.stderr[-200:]}"]
        wrong += [f"{f.name} was changed" for f, data in kept.items() if f.read_bytes() != data]
        larger = f"remount,size={4 * room + (64 << 20)}"
        subprocess.run(["mount", "-o", larger, str(place)], check=True)
        end = cases.run(cases.command(job.words), folder, seconds=300)
        return wrong if end.outcome() == "ok" else [*wrong, f"with room: {end.stderr[-200:]}"]
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _bytes(folder: Path) -> int:
    return sum(-(-f.stat().st_size // 4096) * 4096 for f in folder.rglob("*") if f.is_file())


def main() -> int:
    """Print a row a job; 1 if any ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", default="", help="only these, with commas")
    parser.add_argument("--tmpfs", action="store_true", help="also a full tmpfs; needs root")
    parser.add_argument("--good", type=Path, help="folder of good files that an earlier run made")
    parser.add_argument("--output", type=Path, default=Path("out/faults"))
    asked = parser.parse_args()
    output = asked.output.resolve() / "disk"
    shutil.rmtree(output, ignore_errors=True)
    good = fuzz.good_files(asked.good, asked.output)
    fuzz.warm()
    failed = 0
    for name in [name for name in asked.jobs.split(",") if name] or JOBS:
        draw, job = random.Random(f"{asked.seed}/{name}"), JOBS[name]
        wrong = too_small(name, job, good, output, draw)
        folder = lay(good, job.needs, output / f"{name} stdout")
        end = cases.run(full(list(job.words)), folder, seconds=300)
        if end.outcome() != "refused":
            wrong.append(f"standard output full: {end.outcome()}: {end.stderr[-200:]}")
        if asked.tmpfs:
            wrong += [f"full tmpfs: {line}" for line in on_tmpfs(name, job, good, output)]
        failed += bool(wrong)
        print(f"no room for {name} (seed {asked.seed}): {'; '.join(wrong) or 'ok'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
