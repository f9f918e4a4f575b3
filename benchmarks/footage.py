"""Pack a few held-out clips of Procgen, to travel with the code.

python -m benchmarks.footage data/procgen out/footage
"""

from __future__ import annotations

import argparse
from pathlib import Path

from video.arcade.footage import pack
from video.decoding.container import VideoError

# Those of which a person can say what moves.
CLASSES = (
    "Bigfish", "Bossfight", "Climber", "Coinrun", "Dodgeball", "Fruitbot", "Jumper", "Leaper",
    "Miner", "Ninja", "Plunder", "Starpilot",
)  # fmt: skip


def main() -> None:
    """Read the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=2, help="of each game")
    parser.add_argument("--frames", type=int, default=32, help="of each clip")
    parser.add_argument("--crf", type=int, default=22)
    words = parser.parse_args()
    try:
        size = pack(words.recording, words.output, CLASSES, words.clips, words.frames, words.crf)
    except VideoError as error:
        parser.error(str(error))
    print(f"{size} bytes in {words.output}")


if __name__ == "__main__":
    main()
