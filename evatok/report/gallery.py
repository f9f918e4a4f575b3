"""A picture of what the tokenizer does: easy and hard clips, and what was spent on them.

Shape letters: N clips, T blocks, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from evatok.core.files import atomic_file
from evatok.hub import Models
from evatok.measure.clip_sets import ClipSet, reconstruct_set
from evatok.report.drawing import GAP, Panel, compose
from tokenizer.search.assigners import make_assigner


def gallery(models: Models, real: ClipSet, rows: int = 2, columns: int = 3) -> np.ndarray:
    """Clips from the cheapest to the dearest, each beside its reconstruction.

    Args:
        models: router and final tokenizer are used.
        real: the clips to choose from.
        rows: of the sheet.
        columns: of the sheet.

    Returns:
        (H, W, 3) uint8, one frame of each clip over the tokens of its blocks.
    """
    model = models.final
    done = reconstruct_set(model, make_assigner("router", model, models.router), real)
    assignment = done.tokens.assignment
    order = torch.argsort(assignment.sum(1), stable=True)
    count = min(rows * columns, len(order))
    picked = order[torch.linspace(0, len(order) - 1, count).round().long()].tolist()
    cells = []
    for index in picked:
        pair = (("original", real.clips[index]), ("reconstruction", done.clips.clips[index]))
        panels = [Panel(title, clip.permute(1, 2, 3, 0).numpy()) for title, clip in pair]
        name = real.class_names[int(real.labels[index])]
        frames = compose(
            panels,
            assignment[index].tolist(),
            model.levels.values[-1],
            caption=f"{name} · {float(done.psnr[index]):.1f} dB",
            panel_size=160,
        )
        cells.append(np.pad(frames[len(frames) // 2], ((0, GAP), (0, GAP), (0, 0))))
    blank = np.zeros_like(cells[0])
    cells += [blank] * (rows * columns - count)
    lines = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(lines)[:-GAP, :-GAP]


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 as a PNG, whole or not at all."""
    with atomic_file(path) as partial:
        iio.imwrite(partial, picture)
