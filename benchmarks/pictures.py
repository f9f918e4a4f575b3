"""Cut squares out of frames of videos: pictures that a tokenizer of pictures learns from.

    python -m benchmarks.pictures data/ucf6 data/pictures --each 60

Of each video of a set laid out as UCF-101 so many squares, at the frame's own size, half of it or a
third, anywhere in it, seeded; those of the lists' training videos into `train`, those of their test
videos into `val`: a source `kind: images`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import imageio.v3 as iio
import numpy as np

from evatok.core.files import atomic_folder
from evatok.core.paths import refuse_overwrite
from video.clips import resize
from video.lists import Split, read_ucf101
from video.reading import read_frames

SHRUNK = (1, 2, 3)  # the parts of a frame's size from which a square is cut


def squares(path: Path, count: int, size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Squares (S, S, 3) uint8 of a video, none of a shrunk frame that is smaller."""
    rng = np.random.default_rng(seed)
    frames = read_frames(path)
    found = []
    for place in rng.integers(len(frames), size=count):
        by = int(rng.choice(SHRUNK))
        height, width = (side // by for side in frames.shape[1:3])
        corner = rng.random(2)
        if min(height, width) >= size:
            frame = resize(frames[place, None], (height, width))[0].numpy()
            top, left = (
                int(c * (side - size + 1)) for c, side in zip(corner, frame.shape, strict=False)
            )
            found.append(frame[top : top + size, left : left + size])
    return found


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--each", type=int, default=60, help="squares of a video")
    parser.add_argument("--size", type=int, default=64)
    asked = parser.parse_args()
    refuse_overwrite([asked.output], [asked.videos])
    total = 0
    with atomic_folder(asked.output) as partial:
        for part, split in enumerate(get_args(Split)):
            folder = partial / ("train" if split == "train" else "val")
            folder.mkdir()
            for number, item in enumerate(read_ucf101(asked.videos, split)):
                for place, square in enumerate(
                    squares(item.path, asked.each, asked.size, (part, number))
                ):
                    iio.imwrite(folder / f"{item.path.stem}-{place:03d}.png", square)
                    total += 1
    print(f"{total} pictures in {asked.output}")


if __name__ == "__main__":
    main()
