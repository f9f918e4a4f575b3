"""Pack a few held-out clips of Procgen, to travel with the code.

python -m benchmarks.footage data/procgen evatok/footage/procgen

Its defaults made what `evatok demo` shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from video.arcade.footage import pack
from video.reading import VideoError


def main() -> None:
    """Read the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=2, help="of each game")
    parser.add_argument("--frames", type=int, default=32, help="of each clip")
    parser.add_argument("--crf", type=int, default=23)
    parser.add_argument("--classes", default="", help="with commas between; all if empty")
    parser.add_argument("--max-bytes", type=int, default=600_000, help="of all files together")
    words = parser.parse_args()
    classes = [name for name in words.classes.split(",") if name]
    try:
        size = pack(
            words.recording,
            words.output,
            classes,
            words.clips,
            words.frames,
            words.crf,
            words.max_bytes,
        )
    except VideoError as error:
        parser.error(str(error))
    print(f"{size} bytes in {words.output}")


if __name__ == "__main__":
    main()
