"""HTML of the page: animated pictures, bars of tokens, facts. Nothing in it names another host.

Shape letters: F frames, N tiles, T blocks, H W pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

QUALITY = 85  # of the lossy pictures, 0 to 100
CHART_WIDTH, CHART_HEIGHT, LABELLED = 720, 130, 40  # pixels; more bars than this have no numbers

CSS = """
.evatok-cards { display: flex; flex-wrap: wrap; gap: 14px; }
.evatok-card { width: 200px; }
.evatok-card img, .evatok-empty { width: 200px; aspect-ratio: 1; border-radius: 8px;
  background: #20242e; display: block; }
.evatok-card img { object-fit: contain; }
.evatok-card b { display: block; margin: 6px 0 0; overflow-wrap: anywhere; }
.evatok-card small, .evatok-note { opacity: .75; }
.evatok-bars { display: flex; align-items: flex-end; gap: 3px; height: 64px; margin-top: 6px; }
.evatok-bars span { flex: 1; background: #5884d6; border-radius: 2px 2px 0 0; font-size: 11px;
  line-height: 1; text-align: center; position: relative; min-height: 2px; }
.evatok-bars span.given { background: #60a878; }
.evatok-bars span i { position: absolute; left: 0; right: 0; top: -13px; font-style: normal; }
.evatok-facts { display: flex; flex-wrap: wrap; gap: 10px; }
.evatok-facts div { border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: 8px 14px; min-width: 96px; }
.evatok-facts b { display: block; font-size: 20px; }
.evatok-chart { display: flex; flex-wrap: wrap; gap: 28px; align-items: flex-start; }
.evatok-chart svg { max-width: 100%; height: auto; }
.evatok-chart text { fill: currentColor; font-size: 11px; }
.evatok-note { margin: 6px 0; }
.evatok-error { color: #b42318; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.dark .evatok-error { color: #f97066; }
"""


def animation(frames: np.ndarray, rate: float) -> str:
    """Return a looping picture of frames (F, H, W, 3) uint8 as a `data:` address."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(
        file,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=max(1, round(1000 / rate)),
        loop=0,
        quality=QUALITY,
    )
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def card(
    title: str,
    frames: np.ndarray | None,
    rate: float,
    detail: str,
    blocks: Sequence[int] = (),
    top_level: int = 1,
    given_blocks: int = 0,
) -> str:
    """Return one clip: the picture, a title, a line and a bar for each block.

    Args:
        title: of any letters.
        frames: (F, H, W, 3) uint8; None: there are none yet.
        rate: frames a second.
        detail: a line under the title, of any letters.
        blocks: tokens of each block.
        top_level: the token count at which a bar is full.
        given_blocks: how many of the first blocks were given, in another colour.
    """
    picture = '<div class="evatok-empty"></div>'
    if frames is not None:
        picture = f'<img alt="{html.escape(title)}" src="{animation(frames, rate)}">'
    bars = "".join(
        f'<span class="{"given" if place < given_blocks else ""}" '
        f'style="height:{70 * min(1.0, tokens / top_level):.0f}%"><i>{tokens}</i></span>'
        for place, tokens in enumerate(blocks)
    )
    bars = f'<div class="evatok-bars">{bars}</div>' if bars else ""
    return (
        f'<div class="evatok-card">{picture}<b>{html.escape(title)}</b>'
        f"<small>{html.escape(detail)}</small>{bars}</div>"
    )


def cards(items: Iterable[str]) -> str:
    """Return cards side by side."""
    return f'<div class="evatok-cards">{"".join(items)}</div>'


def note(text: str) -> str:
    """Return a line of any letters."""
    return f'<p class="evatok-note">{html.escape(text)}</p>'


def alert(text: str) -> str:
    """Return a line of any letters that says what went wrong."""
    return f'<p class="evatok-error" role="alert">{html.escape(text)}</p>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return values with their names below."""
    inner = "".join(
        f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in pairs
    )
    return f'<div class="evatok-facts">{inner}</div>'


def tokens_chart(tiles: np.ndarray, grid: tuple[int, int], seconds: Sequence[float]) -> str:
    """Return the tokens over time, and over space where there are several tiles.

    Args:
        tiles: (N, T) int64 tokens of each tile and block of a whole video.
        grid: rows and columns of the tiles, N together.
        seconds: at which each block begins, (T,).
    """
    totals = tiles.sum(0)
    cell, base, room = CHART_WIDTH / len(totals), CHART_HEIGHT - 18, CHART_HEIGHT - 36
    parts = []
    for place, total in enumerate(totals.tolist()):
        height = room * total / max(1, totals.max())
        left = place * cell
        told = f"{seconds[place]:.2f} s: {total} tokens"
        parts.append(
            f'<rect x="{left:.1f}" y="{base - height:.1f}" width="{max(1, cell - 2):.1f}" '
            f'height="{height:.1f}" rx="2" fill="#5884d6"><title>{told}</title></rect>'
        )
        if len(totals) <= LABELLED:
            parts.append(_label(left + cell / 2 - 1, base - height - 4, str(total)))
    for place in sorted({0, len(totals) // 2, len(totals) - 1}):
        parts.append(_label(place * cell + cell / 2, CHART_HEIGHT - 4, f"{seconds[place]:.1f} s"))
    bars = _svg(CHART_WIDTH, CHART_HEIGHT, "Tokens of each block over time", parts)
    return f'<div class="evatok-chart">{bars}{_space(tiles, grid) if len(tiles) > 1 else ""}</div>'


def _space(tiles: np.ndarray, grid: tuple[int, int]) -> str:
    """Return the mean tokens of a block at each tile's place."""
    side, means = 40, tiles.mean(1).reshape(grid)
    parts = []
    for row, values in enumerate(means.tolist()):
        for column, value in enumerate(values):
            shade = 0.12 + 0.8 * value / max(1e-9, means.max())
            x, y = column * side, row * side
            parts.append(
                f'<rect x="{x}" y="{y}" width="{side - 2}" height="{side - 2}" rx="3" '
                f'fill="#5884d6" fill-opacity="{shade:.2f}"/>'
            )
            parts.append(_label(x + side / 2 - 1, y + side / 2 + 3, f"{value:.0f}"))
    rows, columns = grid
    return _svg(columns * side, rows * side, "Mean tokens of a block at each tile", parts)


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>'


def _svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}">{"".join(parts)}</svg>'
        f"<figcaption><small>{title}</small></figcaption></figure>"
    )
