"""Options that several commands share, and what they say on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from evatok.core.errors import EvatokError

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")]
Model = Annotated[str, typer.Option("--model", help="nano, or a folder of trained parts.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed, other results.")]
Config = Annotated[Path, typer.Argument(help="Settings, a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value …")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/FAMILY/STAGE.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 = always the most probable token.")]
TopK = Annotated[int, typer.Option(min=0, help="Only the k most probable tokens; 0 = all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Only this much probability.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="The most that a clip may take.")
]
Lengths = Annotated[
    str, typer.Option("--lengths", help="Of each generated block: 64,16,8,8; default: its choice.")
]
LengthBias = Annotated[
    float, typer.Option("--length-bias", help="Above 0 for longer blocks, below for shorter.")
]
Refine = Annotated[
    int,
    typer.Option(
        "--refine",
        min=0,
        help="Steps of a search for better tokens, as many as before; try 60. Slow.",
    ),
]
Guidance = Annotated[
    float | None, typer.Option(help="u + s (c − u); 1 = off. Default: the model's own.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run a TorchScript file that is not the published one.")
]
Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")
]
DeviceOfSettings = Annotated[
    str | None, typer.Option("--device", help="Instead of the settings': auto, cpu, cuda, cuda:1 …")
]
Plain = Annotated[bool, typer.Option("--plain", help="The clip alone, without bars, for scoring.")]
AllowDamaged = Annotated[
    bool, typer.Option("--allow-damaged", help="Take what can be decoded of a damaged file.")
]


def placed(overrides: list[str] | None, key: str, device: str | None) -> list[str]:
    """Overrides of settings, with a device as the last of them if one is given."""
    return [*(overrides or ()), *([] if device is None else [f"{key}={device}"])]


def size_of(text: str) -> int | tuple[int, int]:
    """Read "96" or "128x72", width first as players and FFmpeg say it: a side, or (height, width).

    Raises:
        ValueError: neither.
    """
    words = text.lower().replace("×", "x").split("x")
    if len(words) > 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise EvatokError(f"--size {text}: give one number, such as 96, or WIDTHxHEIGHT: 128x72")
    width, height = int(words[0]), int(words[-1])
    return width if width == height else (height, width)


def eprint(text: str) -> None:
    """Say something that is no result; a stderr that takes nothing stops no work."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def budget_of(max_tokens: int | None, lengths: str, bias: float) -> Any:
    """A `BudgetConfig` from options.

    Raises:
        EvatokError: lengths that are no numbers.
    """
    from generator.budget import BudgetConfig

    words = [word for word in lengths.split(",") if word]
    if not all(word.strip().isdigit() for word in words):
        raise EvatokError(f"--lengths {lengths}: numbers with commas between, such as 64,16,8,8")
    chosen = tuple(int(word) for word in words) or None
    return BudgetConfig(max_tokens=max_tokens, lengths=chosen, length_bias=bias)


class Bar:
    """A progress bar on stderr with rate and time left, while a block runs."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task(title, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return lambda done, total: self.progress.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
