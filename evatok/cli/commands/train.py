"""Commands that work through a settings file: trainings, searches, tokens, whole pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import (
    AsJson,
    Config,
    Device,
    DeviceOfSettings,
    Model,
    Output,
    Overrides,
    RunDir,
    eprint,
    placed,
)
from evatok.cli.output import show


def train_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    device: DeviceOfSettings = None,
    as_json: AsJson = False,
) -> None:
    """Train a stage; killed and started again, it goes on where it was.

    \b
    Example:
        evatok train configs/nano/proxy.yaml train.steps=2000 train.optimizer.lr=1e-3
    """
    from evatok.core.processes.distributed import rank_from_environment
    from evatok.workflows.train import run_training

    overrides = placed(overrides, "train.device", device)
    result = run_training(config, overrides, run_dir)
    if rank_from_environment().rank == 0:
        show(result, as_json)


def search_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    device: DeviceOfSettings = None,
    as_json: AsJson = False,
) -> None:
    """Record the quality of every assignment of every clip (stage 2).

    \b
    Example:
        evatok search configs/nano/search.yaml clips=2000
    """
    from evatok.workflows.search import Pace, run_search

    show(run_search(config, placed(overrides, "device", device), run_dir, Pace(eprint)), as_json)


def tokens_command(
    config: Config,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    device: DeviceOfSettings = None,
    as_json: AsJson = False,
) -> None:
    """Write the generator's training tokens: clips through the router and the final tokenizer.

    \b
    Example:
        evatok tokens configs/nano/tokens.yaml windows=4
    """
    from evatok.workflows.tokens import run_tokens

    show(run_tokens(config, placed(overrides, "device", device), run_dir), as_json)


def curves_command(
    config: Config,
    output: Output,
    tables: Annotated[
        Path | None, typer.Option(help="Folder of the search. Default: runs/FAMILY/search.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Search that the routers learned from, if another one.")
    ] = None,
    preference: Annotated[
        Path | None,
        typer.Option(help="Folder of a router with w_q as an input. Default: the model's."),
    ] = None,
    model: Model = "nano",
    features: Annotated[str, typer.Option(help="Also distances, with these: nano,i3d.")] = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Quality against tokens for every way to choose assignments, on a search's held-out clips.

    \b
    Example:
        evatok curves configs/nano/search.yaml -o out/curves --features nano
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.hub import feature_networks
    from evatok.measure.curves import run_curves

    place = resolve_device(device)
    networks = feature_networks(features, model, device=place)
    result = run_curves(config, output, tables, preference, model, networks, training, place)
    show(result, as_json)


def pipeline_command(
    settings: Annotated[
        Path, typer.Argument(help="NAME or NAME.yaml of `evatok init`, or a folder: configs/nano.")
    ],
    until: Annotated[str | None, typer.Option(help="Last step to do.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although the gate does not hold.")
    ] = False,
    device: DeviceOfSettings = None,
    as_json: AsJson = False,
) -> None:
    """Do every step from footage to report; finished ones are skipped.

    \b
    Example:
        evatok pipeline configs/nano --until gate
    """
    from evatok.workflows.pipeline import run_pipeline

    result = run_pipeline(settings, until, force, eprint, device)
    show(result if as_json else {"steps": result["steps"], "run_dir": result["run_dir"]}, as_json)
