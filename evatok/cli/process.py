"""Signals and standard streams of a command: closed, full, or of a narrow encoding."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPED = "evatok: stopped\n"
INTERRUPTED = 130  # exit status after SIGINT, as shells have it
PIPE_CLOSED = 141  # and after SIGPIPE


def open_standard_streams() -> None:
    """Give streams that were closed a place: a file opened later must not become stdout."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ascii terminals, names of any bytes


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT end the process at once while modules are imported.

    Libraries swallow a KeyboardInterrupt that meets their imports. There is no work to lose yet. At
    any other time the interrupt is raised as usual, so that files and processes are cleaned up.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if is_importing(frame):
        with suppress(OSError):
            os.write(2, STOPPED.encode())
        os._exit(INTERRUPTED)
    signal.default_int_handler(number, frame)


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, runs an import."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def drop_stdout() -> None:
    """Write nothing more to stdout: its buffer is lost, and Python's end does not try again."""
    handle = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(handle, sys.stdout.fileno())
    os.close(handle)
