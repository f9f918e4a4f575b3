"""`evatok leaderboard add` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AsJson
from evatok.cli.output import naming_stdout, show
from evatok.core.errors import EvatokError, MissingFileError

leaderboard_app = typer.Typer(
    help="Collect records of measurements and compare what compares.", rich_markup_mode=None
)
Board = Annotated[Path, typer.Option("--board", help="The file of all records.")]


@leaderboard_app.command("add")
def add_command(
    files: Annotated[list[Path], typer.Argument(help="Records, as `evatok fvd --record` writes.")],
    board: Board = Path("leaderboard.json"),
    as_json: AsJson = False,
) -> None:
    """Add records to the board; what is there already is not added twice.

    \b
    Example:
        evatok leaderboard add out/record.json --board leaderboard.json
    """
    from evaluation.scoring.leaderboard import add
    from evaluation.scoring.records import read_records
    from evatok.core.paths import refuse_overwrite

    refuse_overwrite([board], files)
    records = [record for file in files for record in read_records(file)]
    new = add(board, records)
    show({"board": str(board), "records": len(records), "added": len(new)}, as_json)


@leaderboard_app.command("show")
def show_command(
    board: Board = Path("leaderboard.json"),
    format_: Annotated[str, typer.Option("--format", help="table, md, csv or html.")] = "table",
    protocol: Annotated[
        str, typer.Option(help="Only this one's table; refused if its records do not compare.")
    ] = "",
    network: Annotated[str, typer.Option(help="With --protocol: only this feature network.")] = "",
    published: Annotated[
        bool, typer.Option("--published", help="The numbers of papers too, in tables of their own.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default stdout.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the board: a table for each set of numbers that compare, best first.

    \b
    Example:
        evatok leaderboard show --published --format html -o page.html
    """
    import sys

    from evaluation.scoring.leaderboard import (
        FORMATS,
        PUBLISHED,
        one_table,
        render,
        rows,
        tables,
        title,
    )
    from evaluation.scoring.page import page
    from evaluation.scoring.records import read_records
    from evatok.core.files import write_text
    from evatok.core.paths import refuse_overwrite

    if format_ not in FORMATS:
        raise EvatokError(f"--format {format_!r} is not one of {', '.join(FORMATS)}")
    if not board.is_file() and not published:
        raise MissingFileError(f"no board {board}: `evatok leaderboard add` makes it")
    records = read_records(board) if board.is_file() else []
    records += read_records(PUBLISHED) if published else []
    if protocol:
        records = one_table(records, protocol, network or None)
    if as_json or format_ == "table":
        if output is not None:
            raise EvatokError("--output needs --format md, csv or html")
        show({title(key): rows(mine) for key, mine in tables(records).items()}, as_json)
        return
    text = page(records) if format_ == "html" else render(records, format_)  # type: ignore[arg-type]
    if output is not None:
        refuse_overwrite([output], [board])
        write_text(output, text)
        show({"file": str(output), "records": len(records)}, as_json)
    else:
        with naming_stdout():
            sys.stdout.write(text)
