"""A budget for the whole video against the same budget for every clip, at equal tokens.

    python -m benchmarks.budgets VIDEO … --frames 96 --json

The first `--frames` frames of each video, cropped to the model's size, are encoded with
`--max-bytes` at three sizes between the router's least and most: how near the file comes, and its
PSNR. Against it, each clip gets its own w_q, the highest whose tokens fit into a budget that is the
same for all clips; that budget is the least with which the clips take at least as many tokens.

Shape letters: N clips, F frames, S side, T blocks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
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
from tokenizer.evt.reader import EvtReader
from tokenizer.search.reward import psnr_of_mse
from video.clips import resize_crop, to_clip
from video.reading import read_frames
from video.timed import write_timed

PLACES = (0.25, 0.5, 0.75)  # of a budget between the router's least and most
GRID = np.linspace(0.0, 2.0, 17).tolist()  # w_q that a clip may get: as fine as a whole video's


def psnr_of(encoder: ExactEncoder, clips: Tensor, assignment: Tensor) -> float:
    """dB of clips (N, 3, F, S, S) in [−1, 1] at an assignment (N, T)."""
    errors = []
    with torch.no_grad():
        for clip, rows in zip(clips.split(1), assignment.split(1), strict=True):
            made = encoder.model.decode(encoder.encode(clip, rows)).float().clamp(-1, 1)
            errors.append((made - clip).square().mean())
    return float(psnr_of_mse(torch.stack(errors).mean()[None])[0])


def clip_by_clip(table: Tensor, wanted: int) -> Tensor:
    """Assignments (N, T) by one budget for every clip, of `wanted` tokens or just more.

    Args:
        table: (len(GRID), N, T) assignments at each w_q.
        wanted: tokens of all clips.
    """
    totals = table.sum(2)  # (w_q, N)
    for budget in totals.unique().tolist():
        fits = torch.where(totals <= budget, totals, -1)
        chosen = torch.where(fits.amax(0) < 0, totals.argmin(0), fits.argmax(0))  # (N,)
        rows = table[chosen, torch.arange(len(chosen))]
        if int(rows.sum()) >= wanted:
            return rows
    return table[totals.argmax(0), torch.arange(table.shape[1])]


def measure(models: Models, file: Path, num_frames: int) -> list[dict[str, Any]]:
    """Rows of one video, one for each budget."""
    config = models.final.config
    frames = resize_crop(read_frames(file, count=num_frames), config.size)
    frames = frames[: len(frames) // config.num_frames * config.num_frames]
    encoder = ExactEncoder(models.final.eval(), models.steerable)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mkv", Path(folder) / "out.evt"
        ticks = ((40 * place, picture) for place, picture in enumerate(frames.numpy()))
        write_timed(source, ticks, Fraction(1, 1000), crf=0)
        # what the file is made of, after the codec that holds it here
        clips = torch.stack(
            [to_clip(part) for part in read_frames(source).split(config.num_frames)]
        )
        table = torch.stack([encoder.assign(clips, w_q=w_q).cpu() for w_q in GRID])
        settings = EncodeSettings(sound=False)
        ends = [
            encode_file(models, source, target, Rate(f"router:{w_q}"), settings)["bytes"]
            for w_q in (GRID[0], GRID[-1])
        ]
        for place in PLACES:
            budget = round(min(ends) + place * abs(ends[1] - ends[0]))
            told = encode_file(models, source, target, Rate(max_bytes=budget), settings)
            with EvtReader(target) as reader:
                spent = [part for chunk in reader.chunks() for part in chunk.assignment]
            whole = torch.from_numpy(np.concatenate(spent))
            each = clip_by_clip(table, int(whole.sum()))
            rows.append(
                {
                    "file": file.name,
                    "clips": len(clips),
                    "max_bytes": budget,
                    "bytes": told["bytes"],
                    "missed_percent": 100 * (budget - told["bytes"]) / budget,
                    "tokens_whole": int(whole.sum()),
                    "psnr_whole": psnr_of(encoder, clips, whole),
                    "tokens_each": int(each.sum()),
                    "psnr_each": psnr_of(encoder, clips, each),
                }
            )
    return rows


def main() -> None:
    """Read the command line, print a row for each budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=96, help="of each video")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    models = load(asked.model)
    rows = []
    for video in asked.videos:
        for row in measure(models, video, asked.frames):
            rows.append(row)
            if not asked.json:
                print(row, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
