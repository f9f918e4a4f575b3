"""Commands that make pages: a live one, and one that opens from disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AsJson, Device, Model, Output, eprint
from evatok.cli.output import show


def app_command(
    model: Model = "nano",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Serve a page that reconstructs, samples, predicts and compares; Ctrl-C ends it.

    \b
    Example:
        evatok app --model nano --port 7860
    """
    from evatok.app.page import serve

    url, close = serve(model, host, port, device)
    try:
        eprint(f"evatok: {url} (Ctrl-C ends it)")
        if as_json:
            show({"url": url}, as_json)
        while True:
            time.sleep(3600)
    finally:
        close()


def demo_command(
    output: Output = Path("out/demo"),
    model: Model = "games",
    settings: Annotated[
        str, typer.Option(help="How much it does; nano/demo-short takes about a minute.")
    ] = "games/demo",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Reconstruct, sample, predict and score; writes a page that opens from disk.

    \b
    Example:
        evatok demo -o out/demo
    """
    from evatok.core.config import find_settings
    from evatok.report.demo import run_demo

    show(run_demo(output, model, eprint, find_settings(settings), device), as_json)
