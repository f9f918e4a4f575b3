"""`evatok text train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AsJson, Output
from evatok.cli.output import show

text_app = typer.Typer(help="Captions and the pieces that write them.", rich_markup_mode=None)


@text_app.callback()
def _group() -> None:
    """Captions and the pieces that write them."""


@text_app.command("train")
def train_command(
    source: Annotated[
        Path, typer.Argument(help="Settings (.yaml), a .csv with captions, or a caption a line.")
    ],
    output: Output,
    vocabulary_size: Annotated[
        int | None,
        typer.Option("--vocabulary-size", min=1, help="Most pieces. Default: the settings', 512."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn the pieces of captions: SentencePiece, the same file every time.

    \b
    Example:
        evatok text train configs/nano/text.yaml -o runs/nano/text
    """
    from evatok.workflows.text import run_text

    show(run_text(source, output, vocabulary_size), as_json)
