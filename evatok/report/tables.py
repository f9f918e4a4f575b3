"""The report of a pipeline: every table as JSON and Markdown, every curve as SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from evaluation.encoders.load import load_features
from evaluation.encoders.nano import NanoFeatures
from evatok.core.config import Config
from evatok.core.files import write_text
from evatok.core.paths import safe_names
from evatok.hub import Models
from evatok.measure.clip_sets import (
    Network,
    held_out_sets,
    prediction_rows,
    sampling_rows,
    tokenizer_rows,
    uniform_rows,
)
from evatok.measure.searched_clips import searched_sets
from evatok.measure.text_alignment import text_rows
from evatok.report.page import number
from evatok.report.plots import line_plot
from evatok.workflows.search import SearchConfig
from generator.inference.requests import SamplingConfig
from tokenizer.training.router_stage import router_scores
from video.dataset import DataConfig

Rows = list[dict[str, Any]]
Say = Callable[[str], None]


class ReportConfig(Config):
    """Measures and number of held-out clips of a report."""

    clips: int = Field(default=360, ge=2)  # of each set, of all non-overlapping windows
    networks: tuple[Literal["nano", "i3d"], ...] = ("nano", "i3d")
    i3d_clips: int = Field(default=256, ge=2)  # I3D takes about a second a clip
    guidance: tuple[float, ...] = (1.0, 2.0)
    preferences: tuple[float, ...] = ()  # w_q, for the router that takes it as an input
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(default=0, ge=0)


def networks_of(models: Models, config: ReportConfig) -> list[Network]:
    """The feature networks to score with; `nano` is the models' own."""
    out = []
    for name in config.networks:
        if name == "nano":
            out.append(Network(NanoFeatures(models.features, models.device)))
        else:
            out.append(Network(load_features(name, device=models.device), config.i3d_clips))
    return out


def measure(
    models: Models,
    data: DataConfig,
    search: SearchConfig | None,
    search_dir: Path,
    w_q: float,
    config: ReportConfig,
    say: Say,
) -> dict[str, Rows]:
    """All tables.

    Args:
        models: all parts.
        data: its held-out clips are used, a set for each source.
        search: settings of the search whose tables of held-out clips judge the router; None
            leaves that table out.
        search_dir: folder of these tables.
        w_q: as in the router's settings.
        config: what and how much.
        say: told what begins.
    """
    networks = networks_of(models, config)
    sets = held_out_sets(data, config.clips)
    tables: dict[str, Rows] = {}
    say("quality at every uniform level")
    tables["levels"] = uniform_rows(models.proxy, sets)
    say("tokenizers: uniform against router")
    tables["tokenizers"] = tokenizer_rows(models, sets, networks, config.preferences)
    if search is not None:
        say("router against the best of all assignments")
        tables["router"] = router_rows(models, search, search_dir, w_q)
    say("class-conditional samples")
    tables["samples"] = sampling_rows(
        models, sets, networks, config.sampling, config.guidance, config.seed
    )
    say("frame prediction")
    tables["predictions"] = prediction_rows(models, sets, networks, config.sampling, config.seed)
    # captions from a file have no thresholds that samples could be judged by
    if models.generator.text is not None and models.text.thresholds is not None:
        say("samples of texts")
        tables["texts"] = text_rows(models, sets, config.sampling, config.guidance, config.seed)
    return tables


def router_rows(models: Models, search: SearchConfig, search_dir: Path, w_q: float) -> Rows:
    """The router's percentile, top-1 and top-5 on held-out clips of each set."""
    rows = []
    quality = models.router.config.quality
    for clips in searched_sets(search, search_dir, models.router.levels, quality):
        scores = router_scores(models.router, clips.logits(models.router), clips.rewards(w_q))
        rows.append({"set": clips.name, **scores, "num_clips": len(clips.real)})
    return rows


def draw(tables: Mapping[str, Rows], folder: Path) -> list[tuple[Path, str]]:
    """Write the plots that the tables allow: (path, caption)."""
    names = list(dict.fromkeys(row["set"] for row in tables["levels"]))
    path = folder / "levels.svg"
    caption = "Quality at every uniform level (proxy tokenizer, held-out clips)"
    line_plot(
        path,
        {name: _points(tables["levels"], name) for name in names},
        title="Quality rises with the budget",
        x_label="tokens a clip",
        y_label="PSNR (dB)",
        log_x=True,
    )
    plots = [(path, caption)]
    for name in names:
        stars = {
            row["tokenizer"]: (row["mean_tokens"], row["psnr"])
            for row in tables.get("tokenizers", [])
            if row["set"] == name and row["mean_tokens"] is not None
        }
        if stars:
            path = folder / f"tradeoff-{safe_names([name])[0]}.svg"
            line_plot(
                path,
                {"every uniform level (proxy)": _points(tables["levels"], name)},
                marked=stars,
                title=f"Where the tokens go: {name}",
                x_label="mean tokens a clip",
                y_label="PSNR (dB)",
                log_x=True,
            )
            plots.append((path, f"Router against uniform levels on {name}"))
    return plots


def _points(rows: Rows, name: str) -> list[tuple[float, float]]:
    return [(row["mean_tokens"], row["psnr"]) for row in rows if row["set"] == name]


TITLES = {
    "levels": "Every uniform level (proxy tokenizer)",
    "tokenizers": "Uniform against router",
    "router": "Router against the best of all assignments",
    "samples": "Class-conditional samples",
    "predictions": "Frame prediction",
    "texts": "Samples of texts: share that is as the text says (evatok/measure/text_alignment.py)",
}


def write_report(
    tables: Mapping[str, Rows],
    about: Mapping[str, Any],
    folder: Path,
    pictures: Sequence[tuple[Path, str]] = (),
) -> None:
    """Write report.json, report.md and figures/.

    Args:
        tables: of `measure`.
        about: settings and checksums that the numbers depend on.
        folder: of the report.
        pictures: more to show, (path in figures/, caption).
    """
    plots = [*pictures, *draw(tables, folder / "figures")]
    text = ["# Report", "", "Held-out clips only. A distance is comparable with others of its"]
    text += ["network, clip count, length, size and split.", ""]
    for name, rows in tables.items():
        text += [f"## {TITLES[name]}", "", markdown(rows), ""]
    for path, caption in plots:
        text += [f"![{caption}](figures/{quote(path.name)})", ""]
    text += ["```json", json.dumps(about, indent=1), "```", ""]
    write_text(folder / "report.md", "\n".join(text))
    write_text(folder / "report.json", json.dumps({"about": about, "tables": tables}, indent=1))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table; nothing for no rows."""
    if not rows:
        return "(none)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(number(row.get(column)) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
