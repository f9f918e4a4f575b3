"""Quality against cost: what each way to choose assignments gets for its tokens.

The curves of the paper's figures 4 and 5 and its table 8, on the held-out clips of a search, whose
table holds the PSNR of every candidate. Distances need the reconstructions themselves and are
taken only when networks are given.

Shape letters: N clips, T blocks, M = m^T candidates.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evatok.core.config import load_config
from evatok.core.errors import EvatokError
from evatok.core.files import write_text
from evatok.core.paths import paths_in, refuse_overwrite, safe_names
from evatok.hub import Models, load, load_model
from evatok.measure.clip_sets import Network, distances, reconstruct_set
from evatok.measure.searched_clips import SearchedClips, searched_sets
from evatok.model_folders import PREFERENCE
from evatok.report.plots import line_plot
from evatok.workflows.search import SearchConfig
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.assigners import choose_best, choose_by_threshold
from tokenizer.search.reward import best_uniform, percentile

Rows = list[dict[str, Any]]

LABELS = {
    "psnr": "PSNR (dB)",
    "moving_psnr": "PSNR where clips move (dB)",
    "lpips": "LPIPS",
    "efficientnet-lite0": "EfficientNet-Lite0 distance",
}
WEIGHTS = tuple(round(0.4 + 0.2 * i, 1) for i in range(9))  # w_q, as in the paper
THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 10))  # quantiles of all PSNR


@dataclass(frozen=True)
class Choice:
    """Tokens and quality of one strategy at one setting.

    Attributes:
        strategy: its name.
        setting: level, w_q or dB.
        chosen: (N,) int64 candidates.
        w_q: of the reward it is after; None if it is after none.
    """

    strategy: str
    setting: float
    chosen: Tensor
    w_q: float | None = None


def thresholds_of(quality: Tensor) -> list[float]:
    """Quantiles of all qualities (N, M), at `THRESHOLDS`; torch.quantile takes 2^24 at most."""
    return np.quantile(quality.double().cpu().numpy(), THRESHOLDS).tolist()


def choices_of(
    clips: SearchedClips, router: Router, conditioned: Router | None = None
) -> Iterator[Choice]:
    """Every strategy at every setting.

    Args:
        clips: with their qualities.
        router: knows one w_q.
        conditioned: a router with w_q as an input.
    """
    count = len(clips.real)
    for level in clips.levels.values:
        index = clips.levels.index(torch.full((clips.num_blocks,), level))
        yield Choice("uniform", level, index.expand(count))
    for value in thresholds_of(clips.quality):
        chosen = choose_by_threshold(clips.quality, clips.lengths, value)
        yield Choice("threshold", value, chosen)
    for w_q in WEIGHTS:
        chosen = choose_best(clips.quality, clips.lengths, clips.standard, w_q)
        yield Choice("max-reward", w_q, chosen, w_q)
    w_q = router.config.w_q
    yield Choice("router", w_q, clips.logits(router).argmax(-1), w_q)
    if conditioned is not None:
        for w_q in WEIGHTS:
            yield Choice("router(w_q)", w_q, clips.logits(conditioned, w_q).argmax(-1), w_q)


@torch.no_grad()
def curve_rows(
    clips: SearchedClips,
    proxy: VideoTokenizer,
    router: Router,
    conditioned: Router | None = None,
    networks: Sequence[Network] = (),
) -> Rows:
    """A row for each strategy and setting: mean tokens, PSNR, percentile, gain over uniform.

    `gain` is the PSNR above the uniform levels, interpolated linearly at the same mean tokens.

    Args:
        clips: held-out clips of one set.
        proxy: reconstructs, where networks are given.
        router: knows one w_q.
        conditioned: a router with w_q as an input.
        networks: for distances between clips and reconstructions.
    """
    rows: Rows = []
    uniform: list[tuple[float, float]] = []
    candidates = clips.levels.candidates(clips.num_blocks)
    for choice in choices_of(clips, router, conditioned):
        means = {
            name: float(table.gather(1, choice.chosen[:, None]).double().mean())
            for name, table in clips.measures.items()
        }
        tokens = float(clips.lengths[choice.chosen].double().mean())
        if choice.strategy == "uniform":
            uniform.append((tokens, means["psnr"]))
        row: dict[str, Any] = {
            "set": clips.name,
            "strategy": choice.strategy,
            "setting": choice.setting,
            "mean_tokens": tokens,
            **means,
        }
        if choice.w_q is not None:
            row["percentile"] = percentile(clips.rewards(choice.w_q), choice.chosen)
            row["best_uniform_percentile"] = best_uniform(
                clips.rewards(choice.w_q), clips.levels, clips.num_blocks
            )[1]
        if networks:
            assigned = iter(candidates[choice.chosen].split(32))  # as `ClipSet.batches` cuts
            done = reconstruct_set(proxy, lambda _, rest=assigned: next(rest), clips.real)
            row |= distances(clips.real, done.clips, networks)
        rows.append(row)
    x, y = zip(*uniform, strict=True)
    for row in rows:
        row["gain"] = row["psnr"] - float(np.interp(row["mean_tokens"], x, y))
        row["num_clips"] = len(clips.real)
    return rows


def kept_gain(rows: Rows, strategy: str = "router") -> float | None:
    """Share of max-reward's gain over uniform that a strategy keeps at the same mean tokens.

    Args:
        rows: of `curve_rows`, one set.
        strategy: the mean over its settings within the range of the curves.

    Returns:
        1 = all of it; None if max-reward gains nothing there.
    """
    best = sorted(
        (row["mean_tokens"], row["gain"]) for row in rows if row["strategy"] == "max-reward"
    )
    x, y = zip(*best, strict=True)
    mine = [
        row for row in rows if row["strategy"] == strategy and x[0] < row["mean_tokens"] < x[-1]
    ]
    possible = sum(float(np.interp(row["mean_tokens"], x, y)) for row in mine)
    return sum(row["gain"] for row in mine) / possible if possible > 0 else None


def measure_curves(
    models: Models,
    search: SearchConfig,
    directory: Path,
    conditioned: Router | None = None,
    networks: Sequence[Network] = (),
    training: Path | None = None,
) -> tuple[Rows, Rows]:
    """Curves of every set, and what the routers keep of the possible gain."""
    rows: Rows = []
    kept: Rows = []
    for clips in searched_sets(
        search, directory, models.proxy.levels, models.router.config.quality, training
    ):
        mine = curve_rows(clips, models.proxy, models.router, conditioned, networks)
        rows += mine
        for strategy in dict.fromkeys(row["strategy"] for row in mine):
            if strategy.startswith("router"):
                kept.append(
                    {
                        "set": clips.name,
                        "strategy": strategy,
                        "kept_gain": kept_gain(mine, strategy),
                    }
                )
    return rows, kept


def run_curves(
    config: Path,
    output: Path,
    tables: Path | None = None,
    preference: Path | None = None,
    model: str = "nano",
    features: Sequence[FeatureNetwork] = (),
    training: Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure and write the curves of the search that a settings file describes.

    Args:
        config: settings of the search.
        output: folder of CSV and pictures.
        tables: of the search; runs/FAMILY/search if None.
        preference: folder of a router with w_q as an input; None = the model's, if it has one.
        model: name or folder of the proxy and the router.
        features: networks of distances.
        training: folder of the search that the routers learned from; None = these tables.
        device: where the models work.

    Returns:
        JSON-able: `curves`, `kept` and the files written.
    """
    search = load_config(SearchConfig, config)
    folder = tables or Path("runs") / config.resolve().parent.name / config.stem
    models = load(model, device)
    read = [config, folder, models.directory, *paths_in(search)]
    read += [path for path in (preference, training) if path is not None]
    refuse_overwrite([output, output / "curves.csv"], read, links=False)
    conditioned: Router | None = models.preference if PREFERENCE in models.parts else None
    if preference is not None:
        conditioned = load_model(Router, preference).to(models.device)
    if conditioned is not None and not conditioned.config.preference:
        raise EvatokError(f"{preference}: this router does not take w_q as an input")
    learned = models.router.config.quality
    if conditioned is not None and conditioned.config.quality != learned:
        raise EvatokError(
            f"the routers learned other rewards, of {learned} and of {conditioned.config.quality}"
        )
    networks = [Network(one) for one in features]
    rows, kept = measure_curves(models, search, folder, conditioned, networks, training)
    files = write_curves(rows, output)
    return {"curves": rows, "kept": kept, "files": [str(path) for path in files]}


def write_curves(rows: Rows, folder: Path) -> list[Path]:
    """Write curves.csv, and for each set and quality an SVG and a PNG.

    Args:
        rows: of `measure_curves`.
        folder: made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_write_csv(rows, folder / "curves.csv")]
    known = dict.fromkeys(key for row in rows for key in row)
    metrics = [key for key in known if key in LABELS or key.startswith("fvd[")]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for name, stem in zip(sets, safe_names(sets), strict=True):
        mine = [row for row in rows if row["set"] == name]
        for metric in metrics:
            series: dict[str, list[tuple[float, float]]] = {}
            for row in mine:
                series.setdefault(row["strategy"], []).append((row["mean_tokens"], row[metric]))
            single = {key: points[0] for key, points in series.items() if len(points) == 1}
            lines = {key: sorted(points) for key, points in series.items() if len(points) > 1}
            for suffix in (".svg", ".png"):
                word = metric.replace("[", "-").replace("]", "")
                path = folder / f"{word}-{stem}{suffix}"
                line_plot(
                    path,
                    lines,
                    marked=single,
                    title=f"{name}: {mine[0]['num_clips']} held-out clips, proxy tokenizer",
                    x_label="mean tokens a clip",
                    y_label=LABELS.get(metric, metric.replace("fvd", "FVD")),
                )
                paths.append(path)
    return paths


def _write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())
