"""Long videos through token files: memory of a long stream, and one second out of ten minutes.

    python -m benchmarks.long_video --json

Generated pictures of `--size` pixels go through `evatok encode` and `decode`, each in a process of
its own, as videos of 1 000 and of `--frames` frames: the most resident memory of either, that of a
process that does nothing beside it, and the time as a multiple of decoding the source alone. Then
one second out of the middle of a video of ten minutes is decoded: bytes read from the token file
and time, against decoding all of it. The tokenizer is small and untrained unless --model is given:
neither memory nor bytes depend on its weights, but times on its size.

Shape letters: H W pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evatok.generate.decoding import decode_file
from evatok.generate.token_file import encode_file
from evatok.generate.token_rate import Rate
from evatok.hub import load, save_model
from tokenizer.evt.reader import EvtReader
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from video.reading import iter_timed
from video.timed import write_timed

MINUTES, FPS = 10, 10


def pictures(count: int, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """A bright square that crosses a dark picture, (H, W, 3) uint8, with ticks."""
    side = min(height, width) // 4
    for number in range(count):
        picture = np.full((height, width, 3), 40, np.uint8)
        top, left = number % (height - side), number % (width - side)
        picture[top : top + side, left : left + side] = 220
        yield number, picture


def small_model(folder: Path, size: int) -> Path:
    """Save a tokenizer with random weights."""
    torch.manual_seed(0)
    former = QFormerConfig(width=16, layers=1, heads=2)
    config = TokenizerConfig(
        levels=(1, 2, 4),
        num_frames=16,
        size=size,
        encoder=former,
        decoder=former,
        codebook_size=16,
        code_dim=4,
    )
    save_model(VideoTokenizer(config), folder / "final")
    return folder


def apart(work: Callable[[], Any]) -> tuple[Any, int, float]:
    """Do something in a process of its own: its result, most resident bytes, seconds."""
    reader, writer = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            result = work()
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            os.write(writer, json.dumps([result, own]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("a process failed, see above")
    result, peak = json.loads(told)
    return result, peak, time.monotonic() - begun


def bytes_read(file: Path, start: float, end: float | None) -> int:
    """Bytes of a token file that are read for a part of it, as the system counts them."""
    before = _read_so_far()
    with EvtReader(file) as reader:
        first = reader.frame_at(start)
        reader.before(first)  # its last clip smooths the first border
        for chunk in reader.chunks(first):
            past = (chunk.times[0] - reader.first_tick) * reader.header.tick
            if end is not None and past >= end:
                break
    return _read_so_far() - before - _read_cost()


def _read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def _read_cost() -> int:
    """Bytes that asking itself reads."""
    before = _read_so_far()
    return _read_so_far() - before


def main() -> None:
    """Read the command line, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000, help="of the long stream")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tile", type=int, default=64, help="pixels of the small model's side")
    parser.add_argument("--model", help="name or folder; default: a small untrained one")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = load(asked.model or small_model(folder / "model", asked.tile))
        rate = Rate(f"uniform:{models.final.config.levels[0]}")
        wanted = {"1000": 1000, str(asked.frames): asked.frames, "minutes": MINUTES * 60 * FPS}
        for key, count in wanted.items():
            source, tokens = folder / f"{key}.mp4", folder / f"{key}.evt"
            write_timed(source, pictures(count, asked.height, asked.width), Fraction(1, FPS))
            _, _, alone = apart(lambda: sum(1 for _ in iter_timed(source)))  # noqa: B023
            _, idle, _ = apart(lambda: None)
            again = folder / f"{key}-again.mp4"
            told, peak, seconds = apart(lambda: encode_file(models, source, tokens, rate))  # noqa: B023
            back, most, took = apart(lambda: decode_file(models, tokens, again))  # noqa: B023
            assert told["frames"] == back["frames"] == count
            found[key] = {
                "frames": count,
                "bytes": told["bytes"],
                "idle_bytes_of_memory": idle,
                "encode_bytes_of_memory": peak,
                "decode_bytes_of_memory": most,
                "source_seconds": alone,
                "encode_seconds": seconds,
                "decode_seconds": took,
                "encode_by_source": seconds / alone,
                "decode_by_source": took / alone,
            }
            if not asked.json:
                print(key, found[key], flush=True)
        file, middle = folder / "minutes.evt", MINUTES * 30.0
        for key, start, end in (("second", middle, middle + 1), ("all", 0.0, None)):
            part = folder / f"{key}.mp4"

            def decode(part: Path = part, start: float = start, end: float | None = end) -> Any:
                return decode_file(models, file, part, start=start, end=end)

            told, _, seconds = apart(decode)
            found[key] = {
                "frames": told["frames"],
                "bytes_read": bytes_read(file, start, end),
                "seconds": seconds,
            }
            if not asked.json:
                print(key, found[key], flush=True)
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
