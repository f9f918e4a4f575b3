"""Random windows of 16 frames, from original files and from copies that `evatok data` made.

    python -m benchmarks.decode ORIGINALS COPIES --json

Both folders are read by the training's own loader (`data.read: files`) at 128 × 128, one thread,
the same videos and windows for both.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from video.lists import VideoItem, read_folder
from video.seek import count_frames, read_window


def windows_per_second(items: list[VideoItem], starts: list[float], size: int) -> float:
    """Of one pass; a start is a share of the room in its video."""
    counts = [count_frames(item.path) for item in items]  # known before training begins
    began = time.perf_counter()
    for item, count, start in zip(items, counts, starts, strict=True):
        read_window(item.path, int(start * max(0, count - 16)), 16, size)
    return len(items) / (time.perf_counter() - began)


def main() -> None:
    """Measure both folders in turn."""
    parser = argparse.ArgumentParser(description="Random windows of original and prepared files.")
    parser.add_argument("originals", type=Path)
    parser.add_argument("copies", type=Path)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    arguments = parser.parse_args()
    copies = {Path(item.id).with_suffix(""): item for item in read_folder(arguments.copies)}
    pairs = [
        (item, copies[Path(item.id).with_suffix("")])
        for item in read_folder(arguments.originals)
        if Path(item.id).with_suffix("") in copies
    ]
    rng = random.Random(0)
    pairs = rng.sample(pairs, min(arguments.videos, len(pairs)))
    before, after = [], []
    for _ in range(arguments.repeats):
        starts = [rng.random() for _ in pairs]
        before.append(windows_per_second([a for a, _ in pairs], starts, arguments.size))
        after.append(windows_per_second([b for _, b in pairs], starts, arguments.size))
    result = {
        "videos": len(pairs),
        "originals_per_second": statistics.median(before),
        "copies_per_second": statistics.median(after),
        "speedup": statistics.median(b / a for a, b in zip(before, after, strict=True)),
    }
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
