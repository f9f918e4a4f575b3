"""One static page of text, numbers, pictures and videos; it opens from disk, without network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evatok.core.files import write_text
from evatok.core.paths import printable

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1d2129;
  --faint: #667085; --line: #dfe3ea; --accent: #2f62b5; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161b; --card: #1d2027; --ink: #e8eaf0;
  --faint: #98a1b3; --line: #2f343f; --accent: #8ab0f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--ground);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .6rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; }
.lead { color: var(--faint); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: 1rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--min)), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.player { position: relative; background: #16181e; padding-bottom: calc(var(--shape) + 4.75rem); }
.player video { position: absolute; width: 100%; height: 100%; object-fit: contain;
  object-position: top; }
figure img { display: block; width: 100%; height: auto; background: #fff; }
figcaption { padding: .5rem .75rem .6rem; font-size: .875rem; overflow-wrap: anywhere; }
figcaption span { color: var(--faint); display: block; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .45rem .75rem; text-align: left; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; color: var(--faint); font-size: .875rem; }
"""


# Videos in view play; without scripts they wait for a click.
SCRIPT = """
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const seen = new IntersectionObserver((entries) => entries.forEach((e) =>
    e.isIntersecting ? e.target.play().catch(() => {}) : e.target.pause()), {threshold: 0.4});
  document.querySelectorAll("video").forEach((video) => seen.observe(video));
}
"""


class Page:
    """A page that is put together section by section and written once."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self._links: list[tuple[str, str]] = []
        self._body: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; it gets a link at the top of the page."""
        anchor = f"section-{len(self._links) + 1}"
        self._links.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{_escape(title)}</h2>')
        if text:
            self._body.append(f"<p>{_escape(text)}</p>")

    def heading(self, title: str) -> None:
        """A smaller heading inside a section."""
        self._body.append(f"<h3>{_escape(title)}</h3>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal keys; numbers are set right-aligned."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        numeric = {c for c in columns if all(_is_number(row.get(c)) for row in rows)}
        css = {c: ' class="number"' if c in numeric else "" for c in columns}
        head = "".join(f"<th{css[c]}>{_escape(c.replace('_', ' '))}</th>" for c in columns)
        lines = []
        for row in rows:
            cells = (f"<td{css[c]}>{_escape(number(row.get(c)))}</td>" for c in columns)
            lines.append(f"<tr>{''.join(cells)}</tr>")
        self._body.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    def videos(
        self,
        items: Sequence[tuple[str, str, str]],
        size: tuple[int, int],
        min_width: int = 340,
    ) -> None:
        """A grid of looping videos, which play while they are in view.

        Args:
            items: (path relative to the page, caption, a second fainter line).
            size: width and height of every picture; the player's controls get room below it.
            min_width: pixels under which a column is not squeezed.
        """
        shape = f"--shape: {100 * size[1] / size[0]:.3f}%"
        figures = [
            f'<figure><div class="player" style="{shape}"><video src="{_link(path)}" controls '
            f'loop muted playsinline preload="metadata"></video></div><figcaption>'
            f"{_escape(caption)}<span>{_escape(detail)}</span></figcaption></figure>"
            for path, caption, detail in items
        ]
        self._grid(figures, min_width)

    def plots(self, items: Sequence[tuple[str, str]], min_width: int = 420) -> None:
        """A grid of pictures: (path relative to the page, caption)."""
        figures = [
            f'<figure><img src="{_link(path)}" alt="{_escape(caption)}">'
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
            for path, caption in items
        ]
        self._grid(figures, min_width)

    def _grid(self, figures: Sequence[str], min_width: int) -> None:
        self._body.append(
            f'<div class="grid" style="--min: {min_width}px">{"".join(figures)}</div>'
        )

    def write(self, path: Path, footer: str) -> None:
        """Write the page, whole or not at all."""
        links = "".join(f'<a href="#{a}">{_escape(t)}</a>' for a, t in self._links)
        text = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_escape(self.title)}</title><style>{STYLE}</style></head><body>\n"
            f'<h1>{_escape(self.title)}</h1><p class="lead">{_escape(self.lead)}</p>'
            f"<nav>{links}</nav>\n"
            + "\n".join(self._body)
            + f"\n<footer>{_escape(footer)}</footer>\n<script>{SCRIPT}</script>"
            "\n</body></html>\n"
        )
        write_text(path, text)


def number(value: Any) -> str:
    """A table cell: thousands separated, four figures, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _link(path: str) -> str:
    """A relative path as the address that a browser looks for: `#?%` and spaces quoted."""
    return html.escape(quote(path.encode("utf-8", "surrogateescape")), quote=True)


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)
