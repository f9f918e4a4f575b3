"""Pictures of what the models do: clips over the tokens they took, and film strips of all kinds.

Shape letters: N clips, F frames, T blocks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from evatok.core.files import atomic_file
from evatok.hub import Models
from evatok.measure.clip_sets import ClipSet, reconstruct_set
from evatok.report.drawing import BACKGROUND, FAINT, GAP, TEXT, TITLE_HEIGHT, Panel, compose, font
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


def contact_sheet(
    titles: Sequence[str], kinds: Mapping[str, Tensor], columns: int = 4, frames: int = 4
) -> np.ndarray:
    """Film strips one below the other: what a person looks at to see whether things move.

    Args:
        titles: of the N cells.
        kinds: under each name, "original" say, the clips (N, 3, F, H, W) uint8 that are one strip
            of every cell; names are written at the left.
        columns: cells beside each other.
        frames: of each clip, evenly spread from the first to the last.

    Returns:
        (rows, columns, 3) uint8, pixels of clips as they are.
    """
    count, _, length, height, width = next(iter(kinds.values())).shape
    times = torch.linspace(0, length - 1, frames).round().long()
    margin = max(int(font(15).getlength(name)) for name in kinds) + 2 * GAP
    cell = (frames * width + GAP, TITLE_HEIGHT + len(kinds) * (height + 2) + GAP)
    canvas = Image.new(
        "RGB", (margin + columns * cell[0], -(-count // columns) * cell[1]), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        left, top = margin + column * cell[0], row * cell[1]
        draw.text((left, top + 4), title, fill=TEXT, font=font(15))
        for line, (name, clips) in enumerate(kinds.items()):
            place = top + TITLE_HEIGHT + line * (height + 2)
            strip = clips[index][:, times].permute(2, 1, 3, 0)  # (H, frames, W, 3)
            picture = Image.fromarray(strip.flatten(1, 2).contiguous().numpy())
            canvas.paste(picture, (left, place))
            if column == 0:
                draw.text((GAP, place + height // 2 - 8), name, fill=FAINT, font=font(15))
    return np.asarray(canvas)


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 as the path's ending says, whole or not at all."""
    with atomic_file(path) as partial:
        iio.imwrite(partial, picture)
