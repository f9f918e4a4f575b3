"""Record one game for a long time into a folder, argument 1, by so many workers, argument 2."""

import sys

from video.arcade.recorder import record

if __name__ == "__main__":
    record(sys.argv[1], ["boxing"], 99, 9, 8, 32, num_workers=int(sys.argv[2]))
