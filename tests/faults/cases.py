"""One command on damaged files, in a process of its own with limits; what became of it.

The process is forked from one that has imported everything and computed nothing, so that a case
costs what the command costs. It has its own group, a limit of time, one of memory that protects
the machine, and no standard input.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
MORE_BYTES = 3 << 30  # that a case may take beyond its parent's, whatever a good file takes
FACTOR = 2.0  # a damaged file may take so much of the memory of a good one

GOOD = ("ok", "refused", "healed")
BAD = ("TRACEBACK", "HANG", "MEMORY", "SIGNAL", "UNTOLD")
OUTCOMES = (*GOOD, *BAD)


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        status: exit status, negative for a signal, None where time ran out.
        stderr: what it said.
        peak: bytes resident at most.
        seconds: that it took.
        orphans: processes that it had started and that outlived it.
    """

    status: int | None
    stderr: str
    peak: int
    seconds: float
    orphans: int = 0

    def outcome(self, good_peak: int | None = None) -> str:
        """Its class, `ok` for any good end.

        Args:
            good_peak: bytes of the same command on a good file; None compares with nothing.
        """
        if self.status is None:
            return "HANG"
        if self.status < 0:
            return "SIGNAL"
        if "Traceback (most recent call last)" in self.stderr or "Exception ignored" in self.stderr:
            return "TRACEBACK"
        if good_peak is not None and self.peak > FACTOR * good_peak:
            return "MEMORY"
        if self.status == 0:
            return "ok"
        told = [line for line in self.stderr.splitlines() if line.startswith("evatok: ")]
        last = told[-1].removeprefix("evatok: ").strip() if told else ""
        return "refused" if self.status == 2 and len(told) == 1 and last else "UNTOLD"


def command(words: Sequence[str]) -> Callable[[], int]:
    """The `evatok` command as work for `run`."""
    from evatok.cli.app import main

    return lambda: main(list(words))


def run(
    work: Callable[[], int], folder: Path, seconds: float = SECONDS, grace: float = 0.0
) -> Ending:
    """Do something in a forked process whose current folder is `folder`.

    Args:
        work: what to do; returns the exit status.
        folder: where.
        seconds: after which the process is killed.
        grace: seconds in which the processes that it had started must end by themselves.
    """
    start, said = time.monotonic(), b""
    reader, writer = os.pipe()  # no file: the disk may be full
    pid = os.fork()
    if pid == 0:
        be(work, folder, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    status, usage = None, None
    while status is None and time.monotonic() < start + seconds:
        time.sleep(0.002)
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        said += _read(reader)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        _, _, usage = os.wait4(pid, 0)
    end = time.monotonic() + grace
    while (orphans := _members(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    assert usage is not None
    os.close(reader)
    text = said.decode("utf-8", "replace")
    peak, seconds = usage.ru_maxrss * 1024, time.monotonic() - start
    return Ending(status, text, peak, seconds, orphans)


def _read(pipe: int) -> bytes:
    """All that is in it now."""
    said = b""
    with suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 16):
            said += part
    return said


def _members(group: int) -> int:
    """Living processes of a group."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            found += int(process_group) == group and state not in "ZX"
    return found


def be(work: Callable[[], int], folder: Path, said: int) -> None:
    """Be the process of a case: its own group, folder, limits and output; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
