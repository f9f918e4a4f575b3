"""Pictures side by side, with the tokens spent on each block drawn under them.

Shape letters: F frames, T blocks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evatok.core.errors import EvatokError

GAP = 8
TITLE_HEIGHT = 24
STRIP_HEIGHT = 88
BACKGROUND = (22, 24, 30)
TEXT = (232, 234, 240)
FAINT = (176, 182, 196)
BAR = (88, 132, 214)
BAR_NOW = (250, 170, 70)
BAR_GIVEN = (96, 168, 120)


@dataclass(frozen=True)
class Panel:
    """One picture of a row.

    Attributes:
        title: written above it.
        frames: (F, H, W, 3) uint8.
    """

    title: str
    frames: np.ndarray


def compose(
    panels: Sequence[Panel],
    blocks: Sequence[int],
    top_level: int,
    *,
    caption: str = "",
    given_blocks: int = 0,
    frames_per_block: int | None = None,
    panel_size: int = 256,
) -> np.ndarray:
    """Draw the frames of one clip.

    Args:
        panels: pictures from left to right, all of F frames.
        blocks: tokens spent on each block.
        top_level: the token count at which a bar is full.
        caption: written before the total, "clip 3" say.
        given_blocks: how many of the first blocks were given rather than generated (other colour).
        frames_per_block: tells which block a frame belongs to; F / T by default.
        panel_size: pixels of a panel's longer side; frames are scaled to it.

    Returns:
        (F, H, W, 3) uint8, sides even, as H.264 wants them.
    """
    counts = {len(panel.frames) for panel in panels}
    if len(counts) != 1:
        raise EvatokError(f"panels have different numbers of frames: {sorted(counts)}")
    num_frames = counts.pop()
    height, width = panels[0].frames.shape[1:3]
    size = _panel_size(height, width, panel_size)
    canvas = Image.new("RGB", canvas_size(len(panels), height, width, panel_size), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, panel in enumerate(panels):
        draw.text((column * (size[0] + GAP) + 6, 4), panel.title, fill=TEXT, font=font(15))
    out = np.repeat(np.asarray(canvas)[None], num_frames, axis=0)
    strips = [
        _strip(canvas.width, blocks, now, top_level, caption, given_blocks)
        for now in range(len(blocks))
    ]
    per_block = frames_per_block or -(-num_frames // len(blocks))
    for index in range(num_frames):
        for column, panel in enumerate(panels):
            left = column * (size[0] + GAP)
            picture = Image.fromarray(panel.frames[index]).resize(size, Image.Resampling.BICUBIC)
            out[index, TITLE_HEIGHT : TITLE_HEIGHT + size[1], left : left + size[0]] = picture
        out[index, TITLE_HEIGHT + size[1] :] = strips[index // per_block]
    return out


def canvas_size(num_panels: int, height: int, width: int, panel_size: int = 256) -> tuple[int, int]:
    """Width and height of what `compose` draws for frames of this size."""
    columns, rows = _panel_size(height, width, panel_size)
    return num_panels * (columns + GAP) - GAP, TITLE_HEIGHT + rows + STRIP_HEIGHT


def _panel_size(height: int, width: int, panel_size: int) -> tuple[int, int]:
    """Width and height of one picture, the longer side scaled to `panel_size`."""
    scale = panel_size / max(height, width)
    return _even(width * scale), _even(height * scale)


def _strip(
    width: int, blocks: Sequence[int], now: int, top_level: int, caption: str, given: int
) -> np.ndarray:
    """Bars of all blocks with their numbers, the block on show in another colour: (H, W, 3)."""
    canvas = Image.new("RGB", (width, STRIP_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    total = f"{caption + ' · ' if caption else ''}{sum(blocks)} tokens"
    draw.text((6, 4), total, fill=FAINT, font=font(15))
    base, room = STRIP_HEIGHT - 6, STRIP_HEIGHT - 52
    cell = (width - 12) / len(blocks)
    for index, tokens in enumerate(blocks):
        left = 6 + index * cell
        bar = max(2, round(room * min(1.0, tokens / top_level)))
        colour = BAR_NOW if index == now else BAR_GIVEN if index < given else BAR
        draw.rectangle((left + 2, base - bar, left + cell - 4, base), fill=colour)
        draw.text(
            (left + cell / 2 - 1, base - bar - 2),
            str(tokens),
            fill=TEXT if index == now else FAINT,
            font=font(16),
            anchor="mb",
        )
    return np.asarray(canvas)


def _even(value: float) -> int:
    return max(2, round(value / 2) * 2)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Of all that is written on pictures, `size` pixels high."""
    return ImageFont.load_default(size)
