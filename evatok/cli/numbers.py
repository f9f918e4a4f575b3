"""Numbers on the command line: finite, and of a size that can be meant."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import typer

from evatok.core.errors import EvatokError

# The most of an option, or of a command's: far above any use, so that a slip costs a line.
LIMITS = {
    "predict count": 4096,  # all of them go through the model together
    **{"size": 8192, "frames": 100_000, "start": 10**9, "count": 1_000_000, "chunk": 100_000},
    **{"train_clips": 1_000_000, "test_clips": 1_000_000, "workers": 1024, "gpus": 1_000_000},
    **{"max_tokens": 2**31 - 1, "top_k": 2**31 - 1, "vocabulary_size": 2**24, "fps": 1000},
    **{"end": 10**9, "guidance": 10_000, "temperature": 10_000, "length_bias": 10_000},
}
LARGEST = 2**63 - 1  # of a whole number: what a seed may be; other numbers may be larger


def check_numbers(app: typer.Typer) -> None:
    """Let every command of an app look at its numbers before it does anything."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _checked(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            check_numbers(group.typer_instance)


def check_number(option: str, value: Any, command: str = "") -> None:
    """Raise for a number that is not finite or beyond the option's limit.

    Args:
        option: its name in Python, such as max_tokens.
        value: of any type; only numbers are looked at.
        command: some have limits of their own.

    Raises:
        EvatokError: names the option and the limit.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    name = f"--{option.replace('_', '-')}"
    if isinstance(value, float) and not math.isfinite(value):
        raise EvatokError(f"{name} {value}: give a finite number")
    limit = LIMITS.get(f"{command} {option}", LIMITS.get(option, LARGEST))
    if abs(value) > limit and (isinstance(value, int) or limit < LARGEST):
        raise EvatokError(f"{name} {value} is beyond {limit}")


def _checked(command: Callable[..., Any]) -> Callable[..., Any]:
    name = command.__name__.removesuffix("_command")

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        for option, value in options.items():
            check_number(option, value, name)
        return command(**options)

    return run
