"""Write files of six kinds into a folder, argument 1, under a limit of 3 000 bytes a file."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from evatok.core.files import atomic_file, write_text
from video.writing import write_video

NOISE = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)


def text(path: Path) -> None:
    write_text(path, "x" * 100_000)


def array(path: Path) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, x=NOISE)


def raw(path: Path) -> None:
    with atomic_file(path) as partial:
        NOISE.tofile(partial)


def weights(path: Path) -> None:
    with atomic_file(path) as partial:
        save_file({"x": torch.zeros(9999)}, partial)


def table(path: Path) -> None:
    with atomic_file(path) as partial:
        pq.write_table(pa.table({"x": NOISE.flatten()}), partial)


def video(path: Path) -> None:
    write_video(path.with_suffix(".mp4"), NOISE, 10)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    for write in (text, array, raw, weights, table, video):
        try:
            write(Path(sys.argv[1]) / write.__name__)
        except OSError as error:
            print(write.__name__, error.errno, Path(error.filename).stem)
