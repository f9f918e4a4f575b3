"""Training steps of the tokenizer: this code against an earlier commit's, in one run.

    python -m benchmarks.train_tokenizer --json

Both train the nano proxy through `training.loop.train`, 32 clips a step, on the same synthetic
clips (discs and a grating that move), with the settings that their own configs/nano/proxy.yaml has.
Each is a process of its own with the code of its commit; they take turns, some steps each.
`speedup` is the median over turns of the ratio of clips a second; `cpu_speedup` that of the
processors' time, which does not depend on what else the machine does. The losses of the first steps
must agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "033bdc9"
CLIPS = 32
NAMES = ("evatok.core.config", "tokenizer.training.tokenizer_stage")  # those of today
TOLERANCE = 0.02  # of the first losses: two orders of rounding in bfloat16


# --- a side: what trains, under the code that PYTHONPATH names


def moving(rows: int, frames: int, size: int, seed: int) -> Any:
    """(rows, 3, frames, size, size) float32 in [−1, 1]: a grating, and six discs over it."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.rand(rows, *shape, 1, 1, 1, generator=generator) * 2 - 1

    t = torch.arange(frames).view(1, 1, -1, 1, 1) / frames
    y = torch.linspace(-1, 1, size).view(1, 1, 1, -1, 1)
    x = torch.linspace(-1, 1, size).view(1, 1, 1, 1, -1)
    phase = 8 * draw(1) * x + 8 * draw(1) * y + 4 * draw(1) * t
    clips = (phase.sin() * draw(3)).expand(rows, 3, frames, size, size).clone()
    for _ in range(6):
        center_y, center_x = draw(1) + draw(1) * t, draw(1) + draw(1) * t
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < (0.05 + 0.1 * draw(1).abs())
        clips = torch.where(inside, draw(3), clips)
    return clips


def side(config_path: Path, run_dir: Path, steps: int) -> None:
    """Train; before each step, tell the time of the last one and wait for a line."""
    from training.loop import train

    is_baseline = importlib.util.find_spec("tokenizer.stages") is not None
    names = ("training.config", "tokenizer.stages") if is_baseline else NAMES
    load_config, stages = import_module(names[0]).load_config, import_module(names[1])

    last: list[float] = []

    class Synthetic:
        """In place of a sampler of video files."""

        def __init__(self, *_: Any) -> None:
            pass

        def batch(self, step: int, rows: int, *_: Any) -> tuple[Any, None, None]:
            now = [time.perf_counter(), time.process_time()]
            spent = [a - b for a, b in zip(now, last, strict=True)] if last else [0.0, 0.0]
            clips = moving(rows, 16, 64, step)
            print(json.dumps(spent), flush=True)
            if not sys.stdin.readline():
                raise SystemExit("the benchmark has ended")
            last[:] = [time.perf_counter(), time.process_time()]
            return clips, None, None

    stages.ClipSampler = Synthetic  # type: ignore[assignment, misc]
    changes = [
        f"train.steps={steps}", f"train.batch_size={CLIPS}", "train.log_every=1",
        "train.validate_every=0", "train.save_every=0", "start_from_data=false",
    ]  # fmt: skip
    if not is_baseline:
        config_path = with_new_names(config_path, run_dir.parent / "settings")
    config = load_config(stages.ProxyConfig, config_path, changes)
    train(stages.TokenizerStage(config), config.train, run_dir, config)


def with_new_names(config_path: Path, folder: Path) -> Path:
    """Copy the settings beside one of them, with the names that keys have today."""
    from evatok.core.renamed import KEYS

    folder.mkdir()
    for path in config_path.parent.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for old, new in KEYS.items():
            text = text.replace(f"{old}:", f"{new}:")
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder / config_path.name


# --- both sides


class Side:
    """A training process that takes steps when told to."""

    def __init__(self, root: Path, folder: Path, steps: int, config: Path) -> None:
        self.run_dir = folder / "run"
        command = [sys.executable, __file__, "--side", str(root / config), str(self.run_dir)]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [*command, "--steps", str(steps)], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> list[float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise RuntimeError(f"a side ended with exit status {self.process.wait()}")

    def step(self) -> list[float]:
        """Take one; seconds on the clock and of the processors."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def losses(self) -> list[float]:
        """Of the steps so far but the last."""
        lines = (self.run_dir / "log.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, lines) if row.get("kind") == "train"]

    def end(self) -> None:
        """Stop the process."""
        self.process.kill()
        self.process.wait()


def unpack(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    archive = folder / "commit.tar"
    subprocess.run(["git", "archive", "-o", str(archive), commit], cwd=ROOT, check=True)
    with tarfile.open(archive) as files:
        files.extractall(folder / "code", filter="data")
    return folder / "code"


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    steps = options.warm_up + options.turns * options.steps + 1
    (folder / "before").mkdir()
    (folder / "now").mkdir()
    roots = {"before": unpack(options.baseline, folder), "now": ROOT}
    sides: dict[str, Side] = {}
    times: dict[str, list[list[float]]] = {name: [] for name in roots}
    try:
        for name, root in roots.items():
            sides[name] = Side(root, folder / name, steps, options.config)
            for _ in range(options.warm_up):
                sides[name].step()
        for turn in range(options.turns):
            for name in sorted(roots, reverse=bool(turn % 2)):
                taken = [sides[name].step() for _ in range(options.steps)]
                times[name].append([statistics.median(kind) for kind in zip(*taken, strict=True)])
            speeds = {name: CLIPS / rows[-1][0] for name, rows in times.items()}
            told = ", ".join(f"{name} {speed:.1f} clips/s" for name, speed in speeds.items())
            print(f"turn {turn + 1} of {options.turns}: {told}", file=sys.stderr, flush=True)
        losses = {name: one.losses() for name, one in sides.items()}
    finally:
        for one in sides.values():
            one.end()
    first = [abs(a - b) / b for a, b in zip(losses["now"][:3], losses["before"][:3], strict=True)]
    if max(first) > TOLERANCE:
        raise RuntimeError(f"the first losses differ: {losses['now'][:3]}, {losses['before'][:3]}")

    def ratio(kind: int) -> float:
        pairs = zip(times["before"], times["now"], strict=True)
        return statistics.median(before[kind] / now[kind] for before, now in pairs)

    return {
        "speedup": ratio(0),
        "cpu_speedup": ratio(1),
        "clips_per_second": {
            name: CLIPS / statistics.median(row[0] for row in rows) for name, rows in times.items()
        },
        "loss_difference": max(first),
        "baseline": options.baseline,
        "turns": options.turns,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Training steps now and at an earlier commit.")
    parser.add_argument("--baseline", default=BASELINE, help="commit to compare with")
    parser.add_argument("--config", type=Path, default=Path("configs/nano/proxy.yaml"))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a turn")
    parser.add_argument("--warm-up", type=int, default=4, help="steps that are not counted")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--side", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        config_path, run_dir = options.side
        side(config_path, run_dir, options.steps)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
