"""Effect of usual mistakes on an FVD, on real clips and a stand-in for a model.

    python -m benchmarks.traps clips more-clips --features nano,i3d --clips 64 --json

One window, at random, of each of `--clips` files. The stand-in for a model's output is the same
clips, blurred a little and with a little noise; `base` is its distance. Every other row changes one
thing, on both sides or on one:

- count: two disjoint sets of real clips, for which a distance should say 0;
- resize: both sides, or one, cut down to 64 × 64 first, with antialias or without;
- range: clips in [0, 1] given for clips in [-1, 1];
- compression: the real clips against themselves, written as H.264 and read again.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.damage import draw, features
from evaluation.encoders.base import FeatureNetwork, resize_frames
from evaluation.metrics.frechet import frechet_distance
from evaluation.scoring.corruptions import blur, noise
from evatok.cli.options import eprint
from evatok.hub import feature_networks
from video.clips import to_clip, to_frames
from video.reading import read_frames
from video.writing import write_video

SMALL = 64  # pixels
CRFS = (18, 28, 38)


def compressed(clips: Tensor, crf: int) -> Tensor:
    """Clips after H.264 of that quality."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        out = []
        for clip in clips:
            write_video(path, to_frames(clip), crf=crf)
            out.append(to_clip(read_frames(path)))
    return torch.stack(out)


def rows(clips: Tensor, network: FeatureNetwork) -> Iterator[dict[str, Any]]:
    """{trap, variant, network, fvd, count} of one network, base first."""
    fake = noise(blur(clips, 1.0), 0.02)
    x, y = features(network, clips), features(network, fake)

    def row(trap: str, variant: str, real: Tensor, other: Tensor) -> dict[str, Any]:
        value = frechet_distance(real, other)
        eprint(f"{trap}, {variant}: FVD[{network.name}] {value:.4g}")
        found = {"trap": trap, "variant": variant, "network": network.name, "fvd": value}
        return found | {"count": len(real)}

    yield row("base", "real against stand-in", x, y)
    count = len(clips) // 2
    while count >= 4:
        yield row("count", f"{count} real against {count} other", x[:count], x[-count:])
        yield row("count", f"{count} real against stand-in", x[:count], y[:count])
        count //= 2
    for antialias in (True, False):
        small = [
            features(network, resize_frames(side, SMALL, antialias=antialias).clamp(-1, 1))
            for side in (clips, fake)
        ]
        how = f"{SMALL} pixels first, {'' if antialias else 'no '}antialias"
        yield row("resize", f"{how}, both sides", *small)
        yield row("resize", f"{how}, stand-in only", x, small[1])
    halves = [features(network, (side + 1) / 2) for side in (clips, fake)]
    yield row("range", "[0, 1], both sides", *halves)
    yield row("range", "[0, 1], stand-in only", x, halves[1])
    for crf in CRFS:
        yield row("compression", f"crf {crf}", x, features(network, compressed(clips, crf)))


def main() -> None:
    """Measure with every network."""
    parser = argparse.ArgumentParser(description="How far usual mistakes move an FVD.")
    parser.add_argument("folders", nargs="+", type=Path, help="real videos")
    parser.add_argument("--features", default="nano", help="nano, i3d, or nano,i3d")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--size", type=int, default=128, help="pixels of the clips")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    logging.getLogger("evaluation.metrics.frechet").setLevel(logging.ERROR)  # N < D is on purpose
    try:
        clips = draw(options.folders, options.clips, options.size)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    networks = feature_networks(options.features, "nano")
    found = [row for network in networks for row in rows(clips, network)]
    result = {"clips": options.clips, "size": options.size, "rows": found}
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
