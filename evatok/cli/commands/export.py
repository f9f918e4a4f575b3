"""Commands that carry a generator to other engines and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AsJson, Model, Output
from evatok.cli.output import show


def export_llama_command(
    directory: Annotated[Path, typer.Argument(help="Folder to make.")],
    model: Model = "nano",
    as_json: AsJson = False,
) -> None:
    """Write the generator as a Llama checkpoint of Transformers, with its grammar.

    \b
    Example:
        evatok export-llama out/llama --model nano
    """
    from evatok.hub import load
    from generator.export.checkpoint import export_llama

    models = load(model)
    gpt = models.generator
    text = None if gpt.text is None else models.text  # refuses one that does not fit
    export_llama(gpt, directory)
    if text is not None:
        text.pieces.save(directory)
    show(
        {
            "directory": str(directory),
            "parameters": sum(p.numel() for p in gpt.parameters()),
            "vocabulary": gpt.vocabulary.size,
            "max_tokens": gpt.max_tokens,
        },
        as_json,
    )


def import_llama_command(
    directory: Annotated[Path, typer.Argument(help="Folder that export-llama wrote.")],
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Read an exported generator back, perhaps trained further; writes OUTPUT/generator.

    \b
    Example:
        evatok import-llama out/llama -o out/models
    """
    from evatok.hub import save_model
    from generator.export.checkpoint import check_empty, import_llama

    folder = output / "generator"
    check_empty(folder)
    gpt = import_llama(directory)
    save_model(gpt, folder)
    show(
        {"model": str(folder), "parameters": sum(p.numel() for p in gpt.parameters())},
        as_json,
    )
