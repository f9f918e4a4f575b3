"""Two gloo processes that share the features in a folder; each writes what its metrics say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from evaluation.metrics.feature_metric import (
    CoverageMetric,
    FrechetDistance,
    JediDistance,
    KernelDistance,
)


def main(folder: Path) -> int:
    """Fork, compute in both, and return the child's exit status."""
    torch.set_num_threads(1)
    x, y = torch.load(folder / "sides.pt", weights_only=True)
    child = os.fork()
    rank = int(child == 0)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    rows = [0, 5, *range(21)] if rank == 0 else [*range(18, 30), 29, 3]
    lines = []
    for kind in (FrechetDistance, KernelDistance, JediDistance, CoverageMetric):
        metric = kind(6)
        metric.update(x[rows], torch.tensor(rows), real=True)
        if rank == 0:
            metric.update(y, torch.arange(25), real=False)
        lines.append(repr(metric.compute()))
    (folder / str(rank)).write_text("\n".join(lines))
    dist.destroy_process_group()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
