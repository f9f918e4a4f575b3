"""Commands that tell of models, trained, planned or to be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AsJson
from evatok.cli.output import show


def info_command(
    model_or_config: Annotated[str, typer.Argument(help="nano, a folder, or a settings file.")],
    as_json: AsJson = False,
) -> None:
    """Parameters by part, levels and vocabulary of trained models or of a settings file.

    \b
    Example:
        evatok info configs/nano/proxy.yaml
    """
    from evatok.plan.info import describe

    show(describe(model_or_config), as_json)


def plan_command(
    path: Annotated[Path, typer.Argument(help="A settings file, or a folder of them.")],
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that share a step.")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, l40s, v100, rtx4090.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the peak that is reached, assumed.")] = 0.35,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Keep only the inputs of layers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Parameters, operations, memory, hours and bytes of a training, before it is begun.

    \b
    Example:
        evatok plan configs/webvid --gpus 8 --gpu h100
    """
    from evatok.plan.estimate import plan

    show(plan(path, gpus, gpu, mfu, checkpointing), as_json)


def weights_command(as_json: AsJson = False) -> None:
    """List every pretrained file that settings can ask for: where it is, whether it is right.

    \b
    Example:
        evatok weights
    """
    from evaluation.weights import rows

    show({"weights": rows()}, as_json)
