"""Prepare five videos of a folder, in a process that a test kills."""

import sys
from pathlib import Path

from video.prepare import Recipe, prepare

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    prepare([f"{n}.avi" for n in range(5)], root, out, Recipe(size=32, crf=10))
