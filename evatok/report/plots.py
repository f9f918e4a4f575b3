"""Curves of the reports, as SVG (or any format that the file name asks for)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evatok.core.extras import extra
from evatok.core.files import atomic_file

with extra("evaluation"):
    import matplotlib
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

COLOURS = ("#2f62b5", "#d9822b", "#3d8b5f", "#a23b72", "#6b6f7b")


def line_plot(
    path: Path,
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marked: Mapping[str, tuple[float, float]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Write a plot of some curves and single marked points, atomically.

    Args:
        path: `.svg` or `.png`; its folder is made.
        series: name → (x, y) points, joined by a line.
        title: above the plot.
        x_label: with its unit.
        y_label: with its unit.
        marked: name → one point, drawn as a star.
        log_x: powers of two on the x axis.
        log_y: powers of ten on the y axis; every y is above 0.
    """
    # The same bytes for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "evatok", "font.size": 10}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        for index, (name, (x, y)) in enumerate((marked or {}).items()):
            colour = COLOURS[(index + len(series)) % len(COLOURS)]
            axes.plot([x], [y], "*", color=colour, label=name, markersize=12)
        if log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for points in series.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) + len(marked or {}) > 1:
            axes.legend(frameon=False)
        is_svg = path.suffix == ".svg"
        with atomic_file(path) as partial:
            figure.savefig(partial, dpi=160, metadata={"Date": None} if is_svg else None)
