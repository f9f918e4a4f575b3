"""Workers of a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(root: Path, how: signal.Signals) -> None:
    """They hold its stdout: that ends when the last of them has."""
    parent = subprocess.Popen(
        [sys.executable, root / "tests" / "video" / "pool.py"],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["works\n"] * 2
    parent.send_signal(how)
    parent.communicate(timeout=60)
    assert parent.returncode == -how
