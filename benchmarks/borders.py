"""Jumps between clips that were coded apart: before and after they are smoothed.

    python -m benchmarks.borders natural=clips ucf101=data/UCF-101 --frames 64 --json

The first `--frames` frames of `--files` videos spread over each set's sorted list, cropped to the
model's size, go through tokens and back, as whole videos do. The jump of a step from a frame to the
next is the mean absolute difference between the step that was decoded and the source's, in 0 to
255: at borders of clips, at borders of blocks inside clips, and everywhere else. Beside it PSNR of
all frames, the mean over videos.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from evatok.generate.token_file import EncodeSettings, encode_frames, header_of
from evatok.generate.token_rate import Rate
from evatok.hub import Models, load
from tokenizer.evt.codec import ChunkDecoder
from video.clips import resize_crop
from video.lists import videos_under
from video.reading import read_frames


def decoded(models: Models, frames: Tensor, rate: Rate, smooth: bool) -> Tensor:
    """Frames (F, H, W, 3) uint8 through tokens and back."""
    settings = EncodeSettings(sound=False)
    header = header_of(models, frames.shape[1], frames.shape[2], Fraction(1, 25), rate, settings)
    timed = [(Fraction(place, 25), frame) for place, frame in enumerate(frames.numpy())]
    chunks = encode_frames(models, header, rate, lambda: iter(timed), settings)
    decoder = ChunkDecoder(header, models.final.eval())
    return torch.cat([clip.pictures for clip in decoder.clips(chunks, smooth=smooth)])


def jumps(made: Tensor, source: Tensor) -> Tensor:
    """(F − 1,) mean absolute difference between steps of two videos (F, H, W, 3) uint8."""
    return (made.float().diff(dim=0) - source.float().diff(dim=0)).abs().mean((1, 2, 3))


def measure(models: Models, videos: list[Tensor], rate: Rate) -> dict[str, dict[str, float]]:
    """Mean jumps at each kind of place, and PSNR, before and after."""
    block, clip = models.final.config.patch[0], models.final.config.num_frames
    found: dict[str, dict[str, float]] = {}
    for name, smooth in (("before", False), ("after", True)):
        steps, quality = [], []
        for source in videos:
            made = decoded(models, source, rate, smooth)
            steps.append(jumps(made, source))
            error = ((made.float() - source.float()) / 255).square().mean()
            quality.append(-10 * torch.log10(error))
        mean = torch.stack(steps).mean(0)
        place = torch.arange(1, len(mean) + 1)  # of the later frame
        at_clip, at_block = place % clip == 0, place % block == 0
        found[name] = {
            "clips": float(mean[at_clip].mean()),
            "blocks": float(mean[at_block & ~at_clip].mean()),
            "inside": float(mean[~at_block].mean()),
            "all": float(mean.mean()),
            "psnr": float(torch.stack(quality).mean()),
        }
    return found


def scenes(folder: Path, files: int, frames: int, size: int | tuple[int, int]) -> list[Tensor]:
    """Beginnings of videos that are long enough, each (F, S, S, 3) uint8."""
    paths = videos_under(folder)
    read = (read_frames(path, count=frames) for path in paths[:: max(1, len(paths) // files)])
    return [resize_crop(video, size) for video in read if len(video) == frames][:files]


def main() -> None:
    """Read the command line, print a row for each set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--files", type=int, default=16, help="of each set")
    parser.add_argument("--frames", type=int, default=64, help="of each video")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--assignment", default="router")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    models = load(asked.model)
    rows = []
    for named in asked.sets:
        name, _, folder = named.partition("=")
        videos = scenes(Path(folder), asked.files, asked.frames, models.final.config.size)
        found = measure(models, videos, Rate(asked.assignment))
        rows.append({"set": name, "videos": len(videos), **found})
        if not asked.json:
            print(rows[-1], flush=True)
    if asked.json:
        print(json.dumps({"model": asked.model, "rows": rows}))


if __name__ == "__main__":
    main()
