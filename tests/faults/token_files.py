"""Damaged token files by the ten thousand, in one process: `python tests/faults/token_files.py`.

Case i of seed s is a function of (s, i) alone. A small video is encoded by an untrained model; each
case damages its file (`mutations`: as bytes, or inside, with the checksums made right again), shows
it, and decodes it with `--allow-damaged`. `fuzz.py` runs the commands themselves, each in a process
of its own; this runs what they call, so that a case costs a tenth of a second.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from mutations import mutate

from evatok.core.errors import EvatokError
from evatok.generate.decoding import decode_file, show_file
from evatok.generate.token_file import EncodeSettings, encode_file
from evatok.hub import Models, load, save_model
from tokenizer.evt.reader import EvtReader
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router, RouterConfig
from video.timed import write_timed

SECONDS = 20.0  # a case that takes longer hangs
FACTOR = 2.0  # a damaged file may take so much of the memory of a good one
LEVELS, FRAMES, SIDE = (1, 2, 4), 8, 16

GOOD = ("whole", "in part", "refused")
BAD = ("TRACEBACK", "HANG", "MEMORY")
OUTCOMES = (*GOOD, *BAD)


@dataclass(frozen=True)
class Result:
    """One case.

    Attributes:
        number: its place in the run.
        damage: what was done to the file.
        outcome: one of `OUTCOMES`.
        said: of a refusal or a failure.
        memory: most resident bytes, by those of the good file.
        seconds: that it took.
    """

    number: int
    damage: str
    outcome: str
    said: str
    memory: float
    seconds: float


class _Hang(Exception):
    """Time ran out."""


def make(root: Path) -> Models:
    """A model whose weights are random, in `root/model`, and `root/good.evt`."""
    torch.manual_seed(1)
    former = QFormerConfig(width=16, layers=1, heads=2)
    shape = {"levels": LEVELS, "num_frames": FRAMES, "size": SIDE}
    tokenizer = TokenizerConfig(
        **shape, encoder=former, decoder=former, codebook_size=16, code_dim=4
    )
    save_model(VideoTokenizer(tokenizer), root / "model" / "final")
    save_model(Router(RouterConfig(**shape, width=16, layers=1, heads=2)), root / "model/router")
    models = load(root / "model")
    pictures = np.random.default_rng(1).integers(0, 255, (20, 16, 22, 3), np.uint8)
    ticks = [40 * place + 7 * (place % 3) for place in range(len(pictures))]
    write_timed(root / "in.mp4", zip(ticks, pictures, strict=True), Fraction(1, 1000))
    settings = EncodeSettings(clips_per_chunk=1)
    encode_file(models, root / "in.mp4", root / "good.evt", settings=settings)
    return models


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> int:
    """Most resident bytes since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def read(models: Models, file: Path, target: Path, start: float) -> tuple[str, str]:
    """Show and decode a token file: the outcome, and what was said."""
    try:
        with _alarm(SECONDS):
            show_file(file)
            told = decode_file(models, file, target, start=start, allow_damaged=True)
            with EvtReader(file) as reader:
                is_whole = reader.is_complete
    except EvatokError as error:
        return "refused", str(error)
    except _Hang:
        return "HANG", ""
    except Exception:
        return "TRACEBACK", traceback.format_exc()
    return ("in part" if told["damage"] or not is_whole else "whole"), "; ".join(told["damage"])


def run(models: Models, root: Path, seed: int, numbers: range) -> Iterator[Result]:
    """Do cases, one after another."""
    file, target = root / "case.evt", root / "case.mkv"
    good = (root / "good.evt").read_bytes()
    for _ in range(3):  # what is loaded at its first use is no case's
        read(models, root / "good.evt", target, 0.0)
    _peak()
    outcome, said = read(models, root / "good.evt", target, 0.0)
    assert outcome == "whole", said
    usual = _peak()
    for number in numbers:
        draw = random.Random(f"{seed}/{number}")
        file.write_bytes(good)
        done, begun = mutate(file, draw), time.monotonic()
        outcome, said = read(models, file, target, draw.choice((0.0, 0.0, 0.4)))
        memory = _peak() / usual
        if outcome in GOOD and memory > FACTOR:
            outcome = "MEMORY"
        yield Result(number, done, outcome, said, memory, time.monotonic() - begun)


def report(results: list[Result]) -> str:
    """A table: a row for each damage, a column for each outcome."""
    head = ["damage", "cases", *OUTCOMES, "most memory", "longest"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    names = sorted({result.damage for result in results})
    for name in [*names, "all"]:
        some = [result for result in results if name in (result.damage, "all")]
        counts = Counter(result.outcome for result in some)
        cells = [str(counts[outcome] or "") for outcome in OUTCOMES]
        cells += [f"{max(result.memory for result in some):.2f} ×"]
        cells += [f"{max(result.seconds for result in some):.1f} s"]
        lines.append(f"| {name} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run, print the table; 1 if any case ended badly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--json", action="store_true", help="the counts as one line of JSON")
    asked = parser.parse_args()
    first = asked.first if asked.case is None else asked.case
    numbers = range(first, first + (asked.n if asked.case is None else 1))
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        models = make(Path(folder))
        for result in run(models, Path(folder), asked.seed, numbers):
            results.append(result)
            if result.outcome in BAD or asked.case is not None:
                print(f"{result}\n{result.said}", file=sys.stderr, flush=True)
            if len(results) % 1000 == 0:
                print(f"{len(results)} cases", file=sys.stderr, flush=True)
    counts = Counter(result.outcome for result in results)
    print(json.dumps(counts) if asked.json else report(results))
    return 1 if any(counts[outcome] for outcome in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
