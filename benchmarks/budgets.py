"""A budget for the whole video against the same budget for every clip, at equal tokens.

    python -m benchmarks.budgets natural=clips ucf101=data/UCF-101 games=runs/nano/arcade --json

The first `--frames` frames of `--files` videos spread over each set's sorted list, cropped to the
model's size, make one video of many scenes. It is encoded with `--max-bytes` at three sizes
between the router's least and most: how near the file comes, and its PSNR. Against it, each clip
gets its own w_q, the highest whose tokens fit into a budget that is the same for all clips; the
PSNR of such budgets is interpolated to as many tokens. PSNR is the mean over clips, which is what
the router weighs; that of the mean error is told beside it.

With `--assignment best` both know the error of every candidate: the whole video is encoded with
`--assignment best`, and each clip gets the candidate of the smallest error within its budget.

Shape letters: N clips, F frames, S side, T blocks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from bisect import bisect_left
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evatok.generate.token_file import EncodeSettings, encode_file
from evatok.generate.token_rate import Rate
from evatok.hub import Models, load
from tokenizer.coding.exact import ExactEncoder
from tokenizer.evt.equal_slope import frontier
from tokenizer.evt.reader import EvtReader
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import candidate_errors
from tokenizer.search.reward import psnr_of_mse
from video.clips import resize_crop, to_clip
from video.lists import videos_under
from video.reading import read_frames
from video.timed import write_timed

PLACES = (0.25, 0.5, 0.75)  # of a budget between the router's least and most
GRID = np.linspace(0.0, 2.0, 17).tolist()  # w_q that a clip may get: as fine as a whole video's


def psnr_of(encoder: ExactEncoder, clips: Tensor, assignment: Tensor) -> tuple[float, float]:
    """Mean dB of clips (N, 3, F, S, S) in [−1, 1] at an assignment (N, T); dB of the mean error."""
    errors = []
    with torch.no_grad():
        for clip, rows in zip(clips.split(1), assignment.split(1), strict=True):
            made = encoder.model.decode(encoder.encode(clip, rows)).float().clamp(-1, 1)
            errors.append((made - clip).square().mean())
    found = torch.stack(errors)
    return float(psnr_of_mse(found).mean()), float(psnr_of_mse(found.mean()[None])[0])


def clip_by_clip(table: Tensor) -> list[Tensor]:
    """Assignments (N, T) by one budget for every clip, for each budget that makes a difference.

    Args:
        table: (len(GRID), N, T) assignments at each w_q.
    """
    totals, found = table.sum(2), {}  # (w_q, N)
    for budget in totals.unique().tolist():
        fits = torch.where(totals <= budget, totals, -1)
        chosen = torch.where(fits.amax(0) < 0, totals.argmin(0), fits.argmax(0))  # (N,)
        rows = table[chosen, torch.arange(len(chosen))]
        found[int(rows.sum())] = rows
    return [found[total] for total in sorted(found)]


def best_each(model: VideoTokenizer, clips: Tensor) -> list[Tensor]:
    """Likewise, of the candidates with the smallest error that each budget pays for."""
    candidates = model.levels.candidates(model.num_blocks)
    lengths = candidates.sum(1).numpy()
    with torch.no_grad():
        errors = [candidate_errors(model, clip)[0].double().numpy() for clip in clips.split(1)]
    tiles = [frontier(lengths, row) for row in errors]
    found = {}
    for budget in np.unique(lengths).tolist():
        places = [int(np.searchsorted(tile.lengths, budget, side="right")) - 1 for tile in tiles]
        chosen = [int(tile.candidates[place]) for tile, place in zip(tiles, places, strict=True)]
        found[int(lengths[chosen].sum())] = candidates[chosen]
    return [found[total] for total in sorted(found)]


def around(curve: list[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """The two assignments of a curve, ascending, between which a number of tokens lies."""
    totals = [int(rows.sum()) for rows in curve]
    place = min(max(bisect_left(totals, tokens), 1), len(curve) - 1)
    return curve[place - 1], curve[place]


def measure(models: Models, name: str, frames: Tensor, best: bool) -> list[dict[str, Any]]:
    """Rows of one video, frames (N · F, S, S, 3) uint8, one for each budget."""
    config = models.final.config
    encoder = ExactEncoder(models.final.eval(), models.conditioned_router)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mkv", Path(folder) / "out.evt"
        ticks = ((40 * place, picture) for place, picture in enumerate(frames.numpy()))
        write_timed(source, ticks, Fraction(1, 1000), crf=0)
        # what the file is made of, after the codec that holds it here
        clips = torch.stack(
            [to_clip(part) for part in read_frames(source).split(config.num_frames)]
        )
        if best:
            curve = best_each(encoder.model, clips)
        else:
            at = [encoder.assign(clips, w_q=w_q).cpu() for w_q in GRID]
            curve = clip_by_clip(torch.stack(at))
        settings = EncodeSettings(sound=False)
        ends = [
            encode_file(models, source, target, Rate(f"router:{w_q}"), settings)["bytes"]
            for w_q in (GRID[0], GRID[-1])
        ]
        for place in PLACES:
            budget = round(min(ends) + place * abs(ends[1] - ends[0]))
            rate = Rate("best" if best else "router", max_bytes=budget)
            told = encode_file(models, source, target, rate, settings)
            with EvtReader(target) as reader:
                spent = [part for chunk in reader.chunks() for part in chunk.assignment]
            whole = torch.from_numpy(np.concatenate(spent))
            tokens = int(whole.sum())
            pair = around(curve, tokens)
            low, high = (int(each.sum()) for each in pair)
            share = (tokens - low) / (high - low)
            quality = psnr_of(encoder, clips, whole)
            below, above = (psnr_of(encoder, clips, each) for each in pair)
            each = [a + share * (b - a) for a, b in zip(below, above, strict=True)]
            rows.append(
                {
                    "set": name,
                    "clips": len(clips),
                    "max_bytes": budget,
                    "bytes": told["bytes"],
                    "missed_percent": 100 * (budget - told["bytes"]) / budget,
                    "tokens": tokens,
                    "psnr_whole": quality[0],
                    "psnr_clip_by_clip": each[0],
                    "psnr_of_mean_error_whole": quality[1],
                    "psnr_of_mean_error_clip_by_clip": each[1],
                }
            )
    return rows


def scenes(folder: Path, files: int, num_frames: int, models: Models) -> Tensor:
    """The beginnings of some videos of a folder, one after another: (F, S, S, 3) uint8."""
    config, found = models.final.config, videos_under(folder)
    chosen = found[:: max(1, len(found) // files)][:files]
    parts = [resize_crop(read_frames(file, count=num_frames), config.size) for file in chosen]
    whole = [part[: len(part) // config.num_frames * config.num_frames] for part in parts]
    return torch.cat(whole)


def main() -> None:
    """Read the command line, print a row for each budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--files", type=int, default=8, help="of each set")
    parser.add_argument("--frames", type=int, default=48, help="of each video")
    parser.add_argument("--assignment", default="router", choices=("router", "best"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    models = load(asked.model)
    rows = []
    for named in asked.sets:
        name, _, folder = named.partition("=")
        frames = scenes(Path(folder), asked.files, asked.frames, models)
        for row in measure(models, name, frames, asked.assignment == "best"):
            rows.append(row)
            if not asked.json:
                print(row, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
