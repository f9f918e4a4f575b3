"""FVD against growing damage: real clips and corrupted copies of themselves.

    python -m benchmarks.damage arcade=data/arcade natural=clips,more-clips --features nano --json

One window, at random, of each of `--clips` files of every set; `evaluation.scoring.corruptions`
spoils them. One CSV for each network and one plot for each network and set are written.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.frechet import frechet_distance
from evaluation.scoring.clips import Cut, VideoClips
from evaluation.scoring.corruptions import DAMAGES
from evatok.cli.options import eprint
from evatok.hub import feature_networks
from evatok.report.plots import line_plot

NUM_FRAMES = 16
BATCH = 16


def draw(folders: list[Path], count: int, size: int, seed: int = 0) -> Tensor:
    """Clips (count, 3, 16, size, size) of as many files of these folders, one of each.

    Raises:
        SystemExit: there are not as many that can be read.
    """
    cut = Cut(num_frames=NUM_FRAMES, size=size, window="random", seed=seed)
    parts = [VideoClips(folder, cut) for folder in folders]
    videos = [
        (index, place) for index, part in enumerate(parts) for place in range(len(part.videos))
    ]
    chosen = random.Random(seed).sample(videos, min(count, len(videos)))
    for index, part in enumerate(parts):
        places = sorted(place for owner, place in chosen if owner == index)
        part.videos = [part.videos[place] for place in places]
    clips = [clip for part in parts for clip in part]
    if len(clips) < count:
        raise SystemExit(f"error: {len(clips)} clips in {folders}, not {count}: lower --clips")
    return torch.stack(clips)


def features(network: FeatureNetwork, clips: Tensor) -> Tensor:
    """(B, D), some clips at a time."""
    return torch.cat([network(part) for part in clips.split(BATCH)])


def curves(name: str, clips: Tensor, network: FeatureNetwork) -> list[dict[str, Any]]:
    """Rows of one set and network: every damage at every strength, 0 first."""
    real = features(network, clips)
    rows = []
    for damage, (spoil, strengths, unit) in DAMAGES.items():
        found = [(0.0, frechet_distance(real, real))]
        for strength in strengths:
            fake = features(network, spoil(clips, strength))
            found.append((strength, frechet_distance(real, fake)))
            eprint(f"{name} {damage} {strength:g}: FVD[{network.name}] {found[-1][1]:.4g}")
        rows += [
            {
                **{"set": name, "damage": damage, "step": step, "strength": strength, "unit": unit},
                **{"network": network.name, "fvd": value, "num_clips": len(clips)},
            }
            for step, (strength, value) in enumerate(found)
        ]
    return rows


def write(rows: list[dict[str, Any]], network: str, output: Path) -> None:
    """The CSV of a network and its plots, one a set."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"damage-{network}.csv"
    partial = path.with_name("partial-" + path.name)
    with partial.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    os.replace(partial, path)
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [row for row in rows if row["set"] == name]
        # Without damage the distance is 0, which has no place on a logarithmic axis.
        series = {
            damage: [(r["step"], r["fvd"]) for r in of_set if r["damage"] == damage and r["step"]]
            for damage in DAMAGES
        }
        line_plot(
            output / f"damage-{network}-{name}.svg",
            series,
            title=f"{of_set[0]['num_clips']} {name} clips against damaged copies",
            x_label="strength, step 1 to 5",
            y_label=f"FVD[{network}]",
            log_y=True,
        )


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether each curve rises at every step."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        key = (row["network"], row["set"], row["damage"])
        groups.setdefault(key, []).append(row["fvd"])
    return [
        {
            **{"network": network, "set": name, "damage": damage, "fvd": values},
            "monotonic": all(low < high for low, high in pairwise(values)),
        }
        for (network, name, damage), values in groups.items()
    ]


def main() -> None:
    """Measure, write, tell."""
    parser = argparse.ArgumentParser(description="FVD against damage of growing strength.")
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER[,FOLDER]", help="real videos")
    parser.add_argument("--features", default="nano", help="nano, i3d, or nano,i3d")
    parser.add_argument("--clips", type=int, default=128, help="of every set")
    parser.add_argument("--size", type=int, default=64, help="pixels of the clips")
    parser.add_argument("--output", type=Path, default=Path("runs/damage"))
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    logging.getLogger("evaluation.metrics.frechet").setLevel(logging.ERROR)  # N < D is on purpose
    sets = {}
    for word in options.sets:
        name, _, folders = word.partition("=")
        if not name or not folders:
            parser.error(f"{word}: a set is NAME=FOLDER or NAME=FOLDER,FOLDER")
        try:
            paths = [Path(folder) for folder in folders.split(",")]
            sets[name] = draw(paths, options.clips, options.size)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    rows = []
    for network in feature_networks(options.features, "nano"):
        of_network = [r for name, clips in sets.items() for r in curves(name, clips, network)]
        write(of_network, network.name, options.output)
        rows += of_network
    found = verdicts(rows)
    if not options.json:
        for row in found:
            values = " ".join(f"{value:.4g}" for value in row["fvd"])
            rises = "rises" if row["monotonic"] else "DOES NOT RISE"
            print(f"FVD[{row['network']}] {row['set']} {row['damage']}: {rises}: {values}")
        return
    result = {"clips": options.clips, "size": options.size, "curves": found}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
