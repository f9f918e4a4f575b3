"""The `evatok` command. No logic here: each command calls a function that Python can call too."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from evatok.core.errors import EvatokError
from evatok.core.renamed import renamed_option

# Before torch is imported: waiting threads must not spin on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from typer.exceptions import TyperException

from evatok.cli.data import data_command
from evatok.cli.errors import REPORT, message_for_user
from evatok.cli.export import export_llama_command, import_llama_command
from evatok.cli.generate import predict_command, sample_command
from evatok.cli.leaderboard import leaderboard_app
from evatok.cli.numbers import check_numbers
from evatok.cli.options import (
    AllowDamaged,
    AsJson,
    Bar,
    Config,
    Device,
    DeviceOfSettings,
    Model,
    Output,
    Overrides,
    Plain,
    RunDir,
    Seed,
    note,
    placed,
)
from evatok.cli.output import Once, naming_stdout, show
from evatok.cli.own import export_command, init_command
from evatok.cli.page import app_command
from evatok.cli.process import (
    INTERRUPTED,
    PIPE_CLOSED,
    STOPPED,
    drop_stdout,
    open_standard_streams,
    stoppable,
)
from evatok.cli.scores import (
    compare_command,
    evaluate_command,
    fvd_command,
    statistics_command,
)
from evatok.cli.text import text_app
from evatok.cli.token_file import (
    Fit,
    Fitting,
    NoSound,
    Pace,
    decode_command,
    encode_command,
    show_command,
)
from evatok.cli.weights import weights_command

# Everything heavy is imported by the command that needs it, so that --help answers at once.

COMPLETE = "_EVATOK_COMPLETE"  # set by the lines of `evatok --show-completion`
# What several processes do together.
SHARED = ("train", "search", "tokens", "sample", "evaluate", "fvd", "compare", "statistics")

app = typer.Typer(name="evatok", rich_markup_mode=None, pretty_exceptions_enable=False)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"evatok {version('evatok')}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say it and exit."),
    ] = False,
) -> None:
    """Adaptive-length video tokenization: from video files to sampled videos."""


@app.command("arcade")
def arcade_command(
    directory: Annotated[Path, typer.Argument(help="Folder to make.")],
    train_clips: Annotated[int, typer.Option(help="Training files of each game.")] = 150,
    test_clips: Annotated[int, typer.Option(help="Test files of each game.")] = 15,
    frames: Annotated[int, typer.Option(help="Frames of a file.")] = 48,
    size: Annotated[int, typer.Option(help="Pixels, square and even.")] = 64,
    fps: Annotated[int, typer.Option(help="Frames a second, as written in the files.")] = 15,
    seed: Seed = 0,
    games: Annotated[str, typer.Option(help="Names with commas; by default all.")] = "",
    source: Annotated[
        Literal["atari", "procgen", "doom"], typer.Option(help="What is played.")
    ] = "atari",
    workers: Annotated[int, typer.Option(min=1, help="Processes; no change to the bytes.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Record labelled footage of games, in the layout of UCF-101.

    \b
    Example:
        evatok arcade data/arcade --train-clips 20 --test-clips 4
        evatok arcade data/procgen --source procgen --train-clips 300 --test-clips 40 --frames 64
    """
    from video.arcade import recorder

    chosen = tuple(games.split(",")) if games else recorder.games_of(source)
    with Bar("recording") as progress:
        recorder.record(
            directory,
            chosen,
            train_clips,
            test_clips,
            frames,
            size,
            seed,
            fps,
            workers,
            progress,
            source,
        )
    files = (train_clips + test_clips) * len(chosen)
    show({"directory": str(directory), "games": len(chosen), "files": files}, as_json)


@app.command("train")
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
    from evatok.core.distributed import place_from_environment
    from evatok.workflows.train import run_training

    overrides = placed(overrides, "train.device", device)
    result = run_training(config, overrides, run_dir)
    if place_from_environment().rank == 0:
        show(result, as_json)


@app.command("search")
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

    show(run_search(config, placed(overrides, "device", device), run_dir, Pace(note)), as_json)


@app.command("tokens")
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


@app.command("curves")
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
    from evatok.core.devices import resolve_device
    from evatok.hub import feature_networks
    from evatok.measure.curves import run_curves

    place = resolve_device(device)
    networks = feature_networks(features, model, device=place)
    result = run_curves(config, output, tables, preference, model, networks, training, place)
    show(result, as_json)


@app.command("pipeline")
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

    result = run_pipeline(settings, until, force, note, device)
    show(result if as_json else {"steps": result["steps"], "run_dir": result["run_dir"]}, as_json)


@app.command("reconstruct")
def reconstruct_command(
    files: Annotated[list[Path], typer.Argument(help="Videos of any length and size.")],
    output: Output,
    assignment: Annotated[
        str, typer.Option(help="router, uniform:32, 32,16,8,8, best or threshold:24.5 (dB).")
    ] = "router",
    quality: Annotated[
        float | None,
        typer.Option(help="Weight of quality in [0, 2]: short for --assignment router:Q."),
    ] = None,
    model: Model = "nano",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most that a clip may take (router, best).")
    ] = None,
    features: Annotated[str, typer.Option(help="Score with these: nano,i3d.")] = "",
    fit: Fitting = Fit.tile,
    no_sound: NoSound = False,
    plain: Plain = False,
    allow_damaged: AllowDamaged = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode and decode videos; writes original and reconstruction side by side, with sound.

    \b
    Example:
        evatok reconstruct holiday.mp4 -o out/videos --quality 1.4
    """
    from evatok.core.devices import resolve_device
    from evatok.generate.reconstruct import reconstruct_files, require_all_read
    from evatok.generate.token_file import EncodeSettings
    from evatok.generate.token_rate import Rate
    from evatok.hub import feature_networks, load

    models = load(model, resolve_device(device))
    if quality is not None:
        if assignment != "router":
            raise EvatokError(f"--quality is the router's: leave out --assignment {assignment}")
        assignment = f"router:{quality:g}"
    result = reconstruct_files(
        models,
        files,
        output,
        Rate(assignment, max_tokens),
        EncodeSettings(fit=fit.value, sound=not no_sound, allow_damaged=allow_damaged),
        networks=feature_networks(features, model, device=models.device),
        plain=plain,
        progress=None if as_json else Pace(),
    )
    if not as_json:
        for row in result["files"]:
            row["clips"] = len(row["clips"])
    show(result, as_json)
    require_all_read(result)


@app.command("info")
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


@app.command("plan")
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


app.command("init")(init_command)
app.command("export")(export_command)
app.command("app")(app_command)
app.command("fvd")(fvd_command)
app.command("compare")(compare_command)
app.command("statistics")(statistics_command)
app.command("evaluate")(evaluate_command)
app.command("encode")(encode_command)
app.command("decode")(decode_command)
app.command("show")(show_command)
app.command("sample")(sample_command)
app.command("predict")(predict_command)
app.command("export-llama")(export_llama_command)
app.command("import-llama")(import_llama_command)
app.command("data")(data_command)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(text_app, name="text")
app.command("weights")(weights_command)


@app.command("demo")
def demo_command(
    output: Output = Path("out/demo"),
    model: Model = "nano",
    settings: Annotated[
        str, typer.Option(help="How much it does; nano/demo-short takes about a minute.")
    ] = "nano/demo",
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

    show(run_demo(output, model, note, find_settings(settings), device), as_json)


check_numbers(app)


def is_ours(words: Sequence[str], environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process of those that a launcher has started has a part in a command.

    In the first one, a command that cannot be shared finds itself alone.
    """
    if not words or words[0] in SHARED or "WORLD_SIZE" not in environment:
        return True
    from evatok.core.distributed import place_from_environment

    is_first = place_from_environment(environment).rank == 0
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return is_first


def tell_of_thread(stopped: threading.ExceptHookArgs) -> None:
    """Tell in one line what a thread of a library (a writer of logs) met; a fault as ever."""
    message = None if stopped.exc_value is None else message_for_user(stopped.exc_value)
    if message is None:
        threading.__excepthook__(stopped)
    else:
        note(f"in the background: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 2 with one line on stderr for bad input, 130 after SIGINT, 141 where the reader
        of stdout has gone. Other exceptions keep their traceback.
    """
    import logging

    open_standard_streams()
    threading.excepthook = tell_of_thread
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Once())
    logging.basicConfig(format="%(message)s", handlers=[handler], level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not is_ours(words):
            note(f"evatok: {words[0]} is the first process's work; this one leaves")
            return 0
        with stoppable():
            status = _run(words or ["--help"])
            with naming_stdout():
                sys.stdout.flush()
            return status
    except TyperException as error:
        told = renamed_option(words) or error.format_message()
        note(f"evatok: {' '.join(told.split())}")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        note(STOPPED.rstrip())
        return INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return PIPE_CLOSED
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            error.add_note(REPORT)
            raise
        note(f"evatok: {message}")
        return 2


def _run(words: list[str]) -> int:
    """Invoke a command. Not `app()`, which makes other exceptions of EOF, SIGINT and pipes."""
    command = typer.main.get_command(app)
    if COMPLETE in os.environ:  # a shell asks what could follow
        command.main(words, prog_name="evatok", complete_var=COMPLETE)
    try:
        with command.make_context("evatok", words) as context:
            status = command.invoke(context)
    except typer.Exit as end:
        status = end.exit_code
    return status if isinstance(status, int) else 0
