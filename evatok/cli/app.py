"""The `evatok` command. No logic here: each command calls a function that Python can call too."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import MutableMapping, Sequence
from typing import Annotated

from evatok.core.renamed import renamed_option

# Before torch is imported: waiting threads must not spin on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from typer.exceptions import TyperException

from evatok.cli.commands.data import arcade_command, data_command
from evatok.cli.commands.export import export_llama_command, import_llama_command
from evatok.cli.commands.generate import predict_command, sample_command
from evatok.cli.commands.leaderboard import leaderboard_app
from evatok.cli.commands.models import info_command, plan_command, weights_command
from evatok.cli.commands.own import export_command, init_command
from evatok.cli.commands.page import app_command, demo_command
from evatok.cli.commands.scores import (
    compare_command,
    evaluate_command,
    fvd_command,
    statistics_command,
)
from evatok.cli.commands.text import text_app
from evatok.cli.commands.token_file import (
    decode_command,
    encode_command,
    reconstruct_command,
    show_command,
)
from evatok.cli.commands.train import (
    curves_command,
    pipeline_command,
    search_command,
    tokens_command,
    train_command,
)
from evatok.cli.errors import REPORT, message_for_user
from evatok.cli.numbers import check_numbers
from evatok.cli.options import eprint
from evatok.cli.output import Once, naming_stdout
from evatok.cli.process import (
    INTERRUPTED,
    PIPE_CLOSED,
    STOPPED,
    drop_stdout,
    open_standard_streams,
    stoppable,
)

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


app.command("arcade")(arcade_command)
app.command("train")(train_command)
app.command("search")(search_command)
app.command("tokens")(tokens_command)
app.command("curves")(curves_command)
app.command("pipeline")(pipeline_command)
app.command("reconstruct")(reconstruct_command)
app.command("info")(info_command)
app.command("plan")(plan_command)
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
app.command("demo")(demo_command)


check_numbers(app)


def is_ours(words: Sequence[str], environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process of those that a launcher has started has a part in a command.

    In the first one, a command that cannot be shared finds itself alone.
    """
    if not words or words[0] in SHARED or "WORLD_SIZE" not in environment:
        return True
    from evatok.core.processes.distributed import rank_from_environment

    is_first = rank_from_environment(environment).rank == 0
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return is_first


def tell_of_thread(stopped: threading.ExceptHookArgs) -> None:
    """Tell in one line what a thread of a library (a writer of logs) met; a fault as ever."""
    message = None if stopped.exc_value is None else message_for_user(stopped.exc_value)
    if message is None:
        threading.__excepthook__(stopped)
    else:
        eprint(f"in the background: {message}")


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
            eprint(f"evatok: {words[0]} is the first process's work; this one leaves")
            return 0
        with stoppable():
            status = _run(words or ["--help"])
            with naming_stdout():
                sys.stdout.flush()
            return status
    except TyperException as error:
        told = renamed_option(words) or error.format_message()
        eprint(f"evatok: {' '.join(told.split())}")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        eprint(STOPPED.rstrip())
        return INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return PIPE_CLOSED
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            error.add_note(REPORT)
            raise
        eprint(f"evatok: {message}")
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
