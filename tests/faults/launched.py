"""Every command under a plain torchrun of two processes, and started twice at once.

`python tests/faults/launched.py`; one row a command, compared with one process. Weights must agree
to a twentieth of what the training has moved them, since sums over two processes round otherwise
and a batch norm sees one process's clips; all else byte for byte. Of a command that is started
twice at once, both may do the work, or one is refused in a line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cases
import fuzz
from jobs import JOBS, TRAINED, Job
from kills import difference, lay, seconds_of, wait_for
from safetensors.numpy import load_file

SAME = 0.05  # of the distance from the first weights
SECONDS = 300
TRAIN = ["train.steps=6", "train.batch_size=4", "train.validate_every=3", "train.save_every=3"]
STAGES = {
    "features": TRAINED,
    "proxy": TRAINED,
    "router": (*TRAINED, "run/search", "run/proxy/model"),
    "final": (*TRAINED, "run/router/model"),
    "generator": ("toy", "squares", "run/tokens", "run/final-wide/model"),
}
SHARED = ("search", "search by two processes", "tokens", "sample mp4", "sample npz")
FIRST_ALONE = ("data", "text", "fvd")
EVALUATE = Job(
    ["evaluate", "arcade-rfvd", "--data", "games/data.yaml", "--model", "run/export",
     "--cache", "f.sqlite", "--record", "made.json"],
    "made.json",
    ("games", "run/export"),
)  # fmt: skip


def alone(words: list[str], folder: Path) -> str:
    """ "" if one process did it, else what it said."""
    end = cases.run(cases.command(words), folder, seconds=SECONDS)
    return "" if end.outcome() == "ok" else f"one process: {end.outcome()}: {end.stderr[-300:]}"


def by_two(words: list[str], folder: Path) -> str:
    """ "" if two processes under torchrun did it, else what they said."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    place = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*launcher, "--nproc-per-node", "2", "-m", "evatok", *words],
            cwd=folder,
            env=os.environ | place,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"torchrun: not done after {SECONDS} s"
    return f"torchrun: {done.returncode}: {done.stderr[-600:]}" if done.returncode else ""


def same_files(job: Job, good: Path, work: Path) -> str:
    """ "ok", or what is not as one process leaves it."""
    one, two = (lay(good, job.needs, work / name) for name in ("one", "two"))
    said = alone(list(job.words), one) or by_two(list(job.words), two)
    if said:
        return said
    for folder in (one, two):
        seconds_of(folder / job.makes)
    return difference(job.result(one), job.result(two))


def twice(job: Job, good: Path, work: Path, delay: float) -> str:
    """ "ok", or what two processes that do the same in one folder leave otherwise than one."""
    one, both = (lay(good, job.needs, work / name) for name in ("one", "both"))
    said = alone(list(job.words), one)
    if said:
        return said
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            told = os.open(both / f"stderr-{number}", os.O_WRONLY | os.O_CREAT)
            cases.be(cases.command(job.words), both, told)
        pids.append(pid)
        time.sleep(delay)
    codes = [wait_for(pid, SECONDS) for pid in pids]
    ends = [
        cases.Ending(code, (both / f"stderr-{number}").read_text(), 0, 0).outcome()
        for number, code in enumerate(codes)
    ]
    if sorted(ends) not in (["ok", "ok"], ["ok", "refused"]):
        worst = next(n for n, end in enumerate(ends) if end not in cases.GOOD or end == "refused")
        return f"{' and '.join(ends)}: {(both / f'stderr-{worst}').read_text()[-300:]}"
    for folder in (one, both):
        seconds_of(folder / job.makes)
    left = [path.name for path in both.rglob("*partial*")]
    if left:
        return f"left behind: {', '.join(left)}"
    said = difference(job.result(one), job.result(both))
    return f"ok ({' and '.join(ends)})" if said == "ok" else said


def same_weights(stage: str, good: Path, work: Path) -> str:
    """ "ok", or how far the weights of two processes are from those of one."""
    words = ["train", f"toy/{stage}.yaml", "--run-dir", "made"]
    start, one, two = (lay(good, STAGES[stage], work / name) for name in ("start", "one", "two"))
    still = ["train.steps=1", "train.optimizer.lr=1e-12"]
    said = alone([*words, *still], start) or alone([*words, *TRAIN], one)
    said = said or by_two([*words, *TRAIN], two)
    if said:
        return said
    left = [path.name for path in two.rglob("*partial*")]
    if left:
        return f"left behind: {', '.join(left)}"
    first, ours, theirs = (
        load_file(folder / "made" / "model" / "model.safetensors") for folder in (start, one, two)
    )
    apart = sum(float(((ours[name] - theirs[name]) ** 2).sum()) for name in ours) ** 0.5
    moved = sum(float(((ours[name] - first[name]) ** 2).sum()) for name in ours) ** 0.5
    told = f"{apart / moved:.2g} of the way apart"
    return f"ok ({told})" if apart < SAME * moved else told


def main() -> int:
    """Print a row a command; 1 if any is not as with one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", default="", help="only these, with commas")
    parser.add_argument("--good", type=Path, help="folder of good files that an earlier run made")
    parser.add_argument("--output", type=Path, default=Path("out/faults"))
    asked = parser.parse_args()
    output = asked.output.resolve() / "launched"
    shutil.rmtree(output, ignore_errors=True)
    good = fuzz.good_files(asked.good, asked.output)
    fuzz.warm()
    jobs = {name: JOBS[name] for name in (*SHARED, *FIRST_ALONE)} | {"evaluate": EVALUATE}
    names = [name for name in asked.commands.split(",") if name]
    failed = 0
    for name in names or [*(f"train {stage}" for stage in STAGES), *jobs]:
        _, _, stage = name.partition("train ")
        if stage in STAGES:
            said = same_weights(stage, good, output / name)
        else:
            said = same_files(jobs[name], good, output / name)
        failed += not said.startswith("ok")
        print(f"torchrun of two, {name}: {said}", flush=True)
    for name in [name for name in names or JOBS if name in JOBS]:
        for delay in (0.0, 0.1):
            said = twice(JOBS[name], good, output / f"{name} twice {delay}", delay)
            failed += not said.startswith("ok")
            print(f"twice at once, {delay} s apart, {name}: {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
