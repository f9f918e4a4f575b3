"""Works that end in every way, and what `cases` calls each of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import cases


def big() -> int:
    """Touch 300 MB."""
    block = bytearray(300 << 20)
    block[::4096] = b"x" * len(block[::4096])
    return 0


def refuse(text: str, status: int = 2) -> int:
    """Say a line, and return the status."""
    print(text, file=sys.stderr)
    return status


def kill() -> int:
    """End by a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def sleep() -> int:
    """Take longer than is allowed."""
    time.sleep(30)
    return 0


WORKS = {
    "ok": lambda: 0,
    "refused": lambda: refuse("evatok: no such file"),
    "UNTOLD": lambda: refuse("evatok: stopped", 130),
    "TRACEBACK": lambda: 1 // 0,
    "HANG": sleep,
    "SIGNAL": kill,
    "MEMORY": big,
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    good = cases.run(lambda: 0, folder)
    for name, work in WORKS.items():
        found = cases.run(work, folder, seconds=1 if name == "HANG" else 60).outcome(good.peak)
        assert found == name, (name, found)
