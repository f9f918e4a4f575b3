"""How near a router comes to the best of all assignments, on clips that were searched.

    python -m benchmarks.percentiles runs/games/search/test --data games/data --json
    python -m benchmarks.percentiles runs/games/search-unseen/test --data unseen.yaml --model games

For each w_q: the percentile of the router's choices (method section 5), that of the best uniform
level, and the share of what lies between that level and the best that the router keeps. Clips of
several sets are told apart too, by the folder that they come from.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evatok.core.config import load_config
from evatok.core.errors import EvatokError
from evatok.hub import load
from evatok.measure.evaluate import DataFile
from evatok.report.tables import markdown
from tokenizer.router import Router
from tokenizer.search.reward import best_uniform, percentile, rewards
from tokenizer.search.table import check_clips, read_table
from video.dataset import ClipSampler


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="folder of held-out clips' errors of a search")
    parser.add_argument("--data", type=Path, required=True, help="settings with the search's data")
    parser.add_argument("--model", default="games")
    parser.add_argument("--w-q", default="1.2,1.4,1.6,1.8", help="with commas between")
    parser.add_argument("--search-batch", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    words = parser.parse_args()
    try:
        rows = measure(words)
    except EvatokError as error:
        parser.error(str(error))
    print(json.dumps({"rows": rows}) if words.json else markdown(rows))


def measure(words: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every w_q and set, and for all sets together."""
    router = load(words.model).conditioned_router
    table = read_table(words.table, whole=True)
    quality = table.quality(router.config.quality)
    sampler = ClipSampler(load_config(DataFile, words.data).data, "test")
    windows = sampler.eval_clips(len(table.batch_rows))
    places = [number * words.search_batch + row for number, row in table.batch_rows]
    windows = [windows[place % len(windows)] for place in places]
    check_clips(words.table, table.names, [sampler.name(window) for window in windows])
    sets: dict[str, list[int]] = defaultdict(list)
    for place, window in enumerate(windows):
        sets["all"].append(place)
        sets[sampler.sources[window.source].root.name].append(place)
    if len(sets) == 2:
        del sets["all"]
    rows = []
    for wanted in map(float, words.w_q.split(",")):
        logits = _logits(router, sampler, windows, wanted)
        for name, chosen in sets.items():
            found = row(router, quality[chosen], logits[chosen], wanted)
            rows.append({"set": name, "num_clips": len(chosen), "w_q": wanted, **found})
    return rows


def row(router: Router, quality: Tensor, logits: Tensor, w_q: float) -> dict[str, float]:
    """Percentiles, share of the gain kept in percent, and mean tokens of router and search."""
    lengths = router.levels.candidates(router.num_blocks).sum(1)
    if router.config.standard is None:
        raise EvatokError("this router does not tell how its reward was made")
    table = rewards(quality, lengths, router.config.standard, w_q).float()
    got = float(percentile(table, logits.argmax(-1)))
    level, uniform = best_uniform(table, router.levels, router.num_blocks)
    return {
        "percentile": got,
        "best_uniform_percentile": uniform,
        "best_uniform_level": level,
        "gain_kept": 100 * (got - uniform) / (100 - uniform),
        "mean_tokens": float(lengths[logits.argmax(-1)].double().mean()),
        "best_mean_tokens": float(lengths[table.argmax(-1)].double().mean()),
    }


@torch.no_grad()
def _logits(router: Router, sampler: ClipSampler, windows: list, w_q: float) -> Tensor:
    parts = []
    for start in range(0, len(windows), 64):
        clips = sampler.load(windows[start : start + 64])[0]
        parts.append(router(clips, torch.full((len(clips),), w_q)))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
