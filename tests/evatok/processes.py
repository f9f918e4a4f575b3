"""What the system tells of processes."""

from __future__ import annotations

import subprocess


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return sorted(map(int, out.stdout.split()))
