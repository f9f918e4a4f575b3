"""Damaged files of every kind, by the thousand: `make faults N=10000 SEED=1`.

Case i of seed s is a function of (s, i) alone, so that one case can be run again by itself:
`python tests/faults/fuzz.py --seed 1 --case 4711`. The folder of a case that ends badly is kept.
A run that is stopped goes on where it was with `--resume`: every result is a line of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cases
import toy_files
from kinds import KINDS, Kind
from mutations import mutate

from evatok.core.processes.pools import end_with_parent

# What commands import when they are run.
WARM = tuple(
    f"evatok.{name}"
    for name in (
        *("cli.app", "generate.prompts", "generate.reconstruct", "generate.sample_set"),
        *(
            "generate.decoding",
            "generate.token_file",
            "measure.curves",
            "measure.evaluate",
            "plan.estimate",
        ),
        *("workflows.pipeline", "workflows.prepare", "workflows.search"),
    )
)
WARM += ("evaluation.scoring.leaderboard", "einops._torch_specific", "av.subtitles.stream")


@dataclass(frozen=True)
class Result:
    """One case.

    Attributes:
        number: its place in the run.
        kind, file, damage, words: what was done.
        outcome: see `cases.OUTCOMES`.
        ending: of the process.
        memory: its most memory, by that of the same command on good files.
    """

    number: int
    kind: str
    file: str
    damage: str
    words: tuple[str, ...]
    outcome: str
    ending: cases.Ending
    memory: float = 1.0


class Fuzz:
    """The cases of a seed."""

    def __init__(self, good: Path, work: Path, seed: int, only: tuple[str, ...] = ()) -> None:
        self.good, self.work, self.seed = good, work, seed
        self.names = only or tuple(KINDS)
        self.good_ends: dict[tuple[str, ...], cases.Ending] = {}

    def run(self, number: int) -> Result:
        """Do one case."""
        name = self.names[number % len(self.names)]
        kind, draw = KINDS[name], random.Random(f"{self.seed}/{name}/{number}")
        files = [file for pattern in kind.files for file in sorted(self.good.glob(pattern))]
        assert files, f"{name}: no such file in the material: {kind.files}"
        file = draw.choice(files).relative_to(self.good)
        words = tuple(str(file) if w == "{}" else w for w in draw.choice(_readers(kind, file)))
        good = self._good(kind, file, words)
        if good.outcome() != "ok":
            return Result(number, name, str(file), "nothing", words, "UNTOLD", good)
        folder = self._copy(kind, file, f"{self.seed}-{number}")
        damage = mutate(folder / file, draw)
        damaged = (folder / file).read_bytes()
        ending = self._do(kind, words, folder)
        outcome = ending.outcome(good.peak)
        if outcome == "ok" and (folder / file).exists():
            outcome = "ok" if (folder / file).read_bytes() == damaged else "healed"
        if outcome in cases.GOOD:
            shutil.rmtree(folder)
        else:
            (folder / file).write_bytes(damaged)
            (folder / "words.txt").write_text("evatok " + " ".join(words) + "\n")
            (folder / "stderr.txt").write_text(ending.stderr)
        memory = ending.peak / good.peak
        return Result(number, name, str(file), damage, words, outcome, ending, memory)

    def _do(self, kind: Kind, words: tuple[str, ...], folder: Path) -> cases.Ending:
        home = folder if toy_files.HOME in kind.needs else self.good
        os.environ["EVATOK_CACHE"] = str(home / toy_files.HOME)
        return cases.run(cases.command(words), folder)

    def _good(self, kind: Kind, file: Path, words: tuple[str, ...]) -> cases.Ending:
        """The same command on good files: a case says nothing where that fails already."""
        if words not in self.good_ends:
            folder = self._copy(kind, file, f"good-{len(self.good_ends)}-{os.getpid()}")
            self.good_ends[words] = self._do(kind, words, folder)
            shutil.rmtree(folder)
        return self.good_ends[words]

    def _copy(self, kind: Kind, file: Path, name: str) -> Path:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for part in (str(file), "features.sqlite", *kind.needs):
            source, target = self.good / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
        return folder


def _readers(kind: Kind, file: Path) -> tuple[tuple[str, ...], ...]:
    """Commands that read this file: those which name its set, else all."""
    top = file.parts[0]
    named = tuple(words for words in kind.commands if top in words)
    return named if top in ("k600", "webvid", "samples", "arrays") and named else kind.commands


def warm() -> None:
    """Import what commands import; nothing is computed, so that forks stay sound."""
    for name in WARM:
        import_module(name)
    import torch
    from PIL import Image

    from evatok.core.config import OptimizerConfig
    from training.optimization.optimizer import build_optimizers

    Image.init()
    torch.set_num_threads(1)
    build_optimizers(torch.nn.Linear(2, 2), OptimizerConfig())  # its first use imports for seconds


_fuzz: Fuzz  # of a worker process


def _begin(*fuzz: Any) -> None:
    global _fuzz
    end_with_parent()
    warm()
    _fuzz = Fuzz(*fuzz)


def _case(number: int) -> Result:
    return _fuzz.run(number)


def run_all(fuzz: tuple[Any, ...], numbers: list[int], jobs: int) -> Iterator[Result]:
    """Cases in their order, by several processes that fork them."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, fuzz) as pool:
        yield from pool.map(_case, numbers)


def report(results: list[Result]) -> str:
    """A table: a row for each kind, a column for each outcome; then every bad case."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counts[result.kind][result.outcome] += 1
        counts["all"][result.outcome] += 1
    head = ["kind", "cases", *cases.OUTCOMES, "most memory", "longest"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name in [*KINDS, "all"]:
        if name in counts:
            some = [result for result in results if name in (result.kind, "all")]
            row = [str(counts[name][outcome] or "") for outcome in cases.OUTCOMES]
            row += [f"{max(result.memory for result in some):.2f} ×"]
            row += [f"{max(result.ending.seconds for result in some):.0f} s"]
            lines.append(f"| {name} | {counts[name].total()} | {' | '.join(row)} |")
    return "\n".join(lines)


def read(log: Path) -> list[Result]:
    """The results of a run that was stopped; a line that it could not finish is none."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            row |= {"words": tuple(row["words"]), "ending": cases.Ending(**row["ending"])}
            found.append(Result(**row))
    return found


def good_files(made: Path | None, output: Path) -> Path:
    """The folder of good files, made if none is given; the environment of all cases is set too.

    Raises:
        SystemExit: they could not be made.
    """
    good = (made or output / "good").resolve()
    os.environ |= {"EVATOK_CACHE": str(good / toy_files.HOME), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "200"}
    if made is None:
        shutil.rmtree(good, ignore_errors=True)
        good.mkdir(parents=True)
        ending = cases.run(toy_files.make, good, seconds=600)
        if ending.status != 0:
            sys.exit(f"the good files could not be made:\n{ending.stderr}")
    return good


def _tell(result: Result) -> None:
    last = (result.ending.stderr.strip().splitlines() or ["(nothing said)"])[-1]
    print(
        f"{result.outcome} case {result.number}: {result.kind}, {result.file} by {result.damage}: "
        f"evatok {' '.join(result.words)}: {last[:200]} ({result.ending.seconds:.1f} s, "
        f"{result.ending.peak >> 20} MB)",
        flush=True,
    )


def main() -> int:
    """Run, print the table; 1 if any case ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--kinds", default="", help="only these, with commas")
    parser.add_argument("--good", type=Path, help="folder of good files that an earlier run made")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    parser.add_argument("--output", type=Path, default=Path("out/faults"))
    asked = parser.parse_args()
    output, start = asked.output.resolve(), time.monotonic()
    bad, log = output / "bad", output / f"results-{asked.seed}.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    if not asked.resume:
        shutil.rmtree(bad, ignore_errors=True)
        log.unlink(missing_ok=True)
    results = read(log) if log.exists() else []
    good = good_files(asked.good, output)
    only = tuple(name for name in asked.kinds.split(",") if name)
    done = {result.number for result in results}
    wanted = range(asked.n) if asked.case is None else [asked.case]
    numbers = [number for number in wanted if number not in done]
    with log.open("a", encoding="utf-8") as file:
        for result in run_all((good, bad, asked.seed, only), numbers, asked.jobs):
            results.append(result)
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            if result.outcome in cases.BAD:
                _tell(result)
            if len(results) % 500 == 0:
                print(f"{len(results)} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(report(results))
    failed = sum(result.outcome in cases.BAD for result in results)
    print(f"{failed} of {len(results)} bad, seed {asked.seed}, {time.monotonic() - start:.0f} s")
    if failed:
        print(f"their files: {bad}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
