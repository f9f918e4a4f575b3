"""The command that begins with own videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evatok.cli.options import AsJson, Output, size_of
from evatok.cli.output import show
from evatok.core.errors import EvatokError


def init_command(
    name: Annotated[str, typer.Argument(help="Of the project: NAME.yaml, NAME.csv, runs/NAME.")],
    data: Annotated[Path, typer.Option(help="Folder of videos, a sub-folder for each class.")],
    start_from: Annotated[
        str | None,
        typer.Option(help="Models to go on from: games, a run, a folder. Its sizes are taken."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels, multiples of 8: 96, or WIDTHxHEIGHT: 128x72. Default: 64."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Of a clip, a multiple of 4. Default: 16.")
    ] = None,
    levels: Annotated[str, typer.Option(help="Tokens of a block: 4,8,16. Default: by size.")] = "",
    captions: Annotated[Path | None, typer.Option(help="A csv: path,caption.")] = None,
    preset: Annotated[
        Literal["quick", "standard", "long"], typer.Option(help="How long it trains.")
    ] = "standard",
    held_out: Annotated[float, typer.Option(help="Share of each class kept for testing.")] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Look at a folder of videos; writes a short file of settings and the held-out split.

    \b
    Example:
        evatok init mine --data videos --preset quick
        evatok init mine --data videos --start-from games
    """
    from evatok.workflows.own.split import init

    words = [word.strip() for word in levels.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise EvatokError(f"--levels {levels}: numbers with commas between, such as 4,8,16")
    chosen = tuple(int(word) for word in words) or None
    pixels = None if size is None else size_of(size)
    found = init(name, data, pixels, frames, chosen, captions, preset, held_out, start_from)
    show(found, as_json)


def export_command(
    run: Annotated[Path, typer.Argument(help="A run, such as runs/mine.")],
    output: Output,
    records: Annotated[
        list[Path] | None,
        typer.Option("--record", help="Numbers for the model card, of `evaluate --record`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the trained parts of a run, finished or not, into a folder that --model takes.

    \b
    Example:
        evatok export runs/mine -o out/mine --record out/rfvd.json
    """
    from evaluation.scoring.records import read_records
    from evatok.hub import export_run

    numbers = [record for path in records or () for record in read_records(path)]
    show(export_run(run, output, numbers), as_json)
