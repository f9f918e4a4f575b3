"""Reconstructions of held-out clips, set by set: quality, tokens and distances of each assignment.

    python -m benchmarks.held_out games/data --assignments uniform:32,router:1.6 --count 320 --json

Unlike the protocols of `evatok evaluate` it takes any labelled set, such as six classes of UCF-101.
The first row of a set is each clip's first frame, standing still. With `--predict` the generator
continues the first frames instead, beside the last of them standing still.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from evaluation.metrics.quality import psnr
from evatok.core.config import load_config
from evatok.core.errors import EvatokError
from evatok.hub import feature_networks, load
from evatok.measure.clip_sets import (
    ClipSet,
    Network,
    distances,
    held_out_sets,
    prediction_rows,
    reconstruct_set,
    standing_row,
)
from evatok.measure.evaluate import DataFile
from evatok.report.tables import markdown
from generator.inference.requests import SamplingConfig
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.model import VideoTokenizer
from tokenizer.search.assigners import Assigner


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="settings file with the data")
    parser.add_argument("--model", default="games")
    parser.add_argument("--assignments", default="uniform:32,router", help="with commas between")
    parser.add_argument("--features", default="nano", help="networks of the distances")
    parser.add_argument("--count", type=int, default=320, help="clips of each set, at most")
    parser.add_argument(
        "--unquantised", action="store_true", help="also the PSNR of codes before quantisation"
    )
    parser.add_argument("--refine", type=int, default=0, help="steps of a search for better tokens")
    parser.add_argument("--predict", action="store_true", help="frame prediction, with seed 0")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    words = parser.parse_args()
    if words.predict and words.refine:
        parser.error("--refine is for reconstructions: leave out --predict")
    try:
        rows = measure(words)
    except EvatokError as error:
        parser.error(str(error))
    print(json.dumps({"rows": rows}) if words.json else markdown(rows))


def measure(words: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every set and assignment."""
    models = load(words.model)
    device = torch.device("cpu")
    networks = [Network(n) for n in feature_networks(words.features, words.model, False, device)]
    rows = []
    sets = held_out_sets(load_config(DataFile, words.data).data, words.count)
    if words.predict:
        return prediction_rows(models, sets, networks, SamplingConfig(guidance=1.0), 0)
    for real in sets:
        rows.append(standing_row(real, networks))
        for name in words.assignments.split(","):
            done = reconstruct_set(models.final, models.assigner(name), real, words.refine)
            quality = done.row(models.final.config.codebook_size)
            found = distances(real, done.clips, networks)
            count: dict[str, Any] = {"num_clips": len(real)}
            if words.refine:
                count["refine_steps"] = words.refine
            if words.unquantised:
                count["psnr_unquantised"] = unquantised(models.final, models.assigner(name), real)
            rows.append({"set": real.name, "tokenizer": name, **quality, **found, **count})
    return rows


@torch.no_grad()
def unquantised(model: VideoTokenizer, assigner: Assigner, real: ClipSet) -> float:
    """Mean PSNR of what the decoder makes of the encoder's own numbers instead of codes."""
    values = []
    for clips in real.batches():
        groups = ClipGroups.from_assignment(assigner(clips))
        codes = F.normalize(model._encode(clips, groups).float(), dim=-1)
        values.append(psnr(model._decode(codes, groups)[0].float().clamp(-1, 1), clips))
    return float(torch.cat(values).mean())


if __name__ == "__main__":
    main()
