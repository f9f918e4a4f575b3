"""Every video of folders through a token file and back: frames, sizes, times, ids.

    python -m benchmarks.round_trip FOLDER … --fit pad --every 1 --json

Each file is encoded whole, in two pieces that meet at a clip's border, and once more with a run
that breaks off in the middle of a chunk and goes on; then it is decoded. A file that `encode`
refuses is listed with its reason, and tried with `--allow-damaged`.

Shape letters: F frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np

from evatok.core.errors import EvatokError
from evatok.generate.decoding import decode_file
from evatok.generate.token_file import EncodeSettings, encode_file
from evatok.generate.token_rate import Rate
from evatok.hub import Models, load
from tokenizer.evt.pictures import Fit
from tokenizer.evt.reader import EvtReader
from video.decoding.container import VideoError
from video.folder import videos_under
from video.reading import iter_timed

TORN = 5  # bytes cut from the end of a broken-off file


class _BrokenOff(Exception):
    """Stands for a kill."""


def ids_of(path: Path) -> np.ndarray:
    """All ids of a token file, (L,) int64."""
    with EvtReader(path) as reader:
        return np.concatenate([chunk.ids for chunk in reader.chunks()])


def seen(path: Path, allow_damaged: bool, end: float | None) -> tuple[list[Fraction], list[int]]:
    """Times of a video's frames after the first one, seconds, and its [width, height]."""
    on_damage = (lambda _: None) if allow_damaged else None
    times: list[Fraction] = []
    size: list[int] = []
    for time, picture in iter_timed(path, on_damage):
        if end is not None and times and time - times[0] >= end - 1e-6:
            break
        size = size or [picture.shape[1], picture.shape[0]]
        times.append(time)
    return [time - times[0] for time in times], size


def broken_off(models: Models, file: Path, target: Path, settings: EncodeSettings) -> bool:
    """Encode with a run that ends in the middle of its second chunk; whether there was one."""

    def stop(_: str, done: int, __: int | None) -> None:
        if done > models.final.config.num_frames * settings.clips_per_chunk:
            raise _BrokenOff

    try:
        encode_file(models, file, target, Rate(), settings, stop)
    except _BrokenOff:
        partial = target.with_name(target.name + ".partial")
        with open(partial, "r+b") as torn:
            torn.truncate(partial.stat().st_size - TORN)
        encode_file(models, file, target, Rate(), settings)
        return True
    return False


def round_trip(
    models: Models, file: Path, folder: Path, settings: EncodeSettings
) -> dict[str, Any]:
    """One row: what of the file came back."""
    damaged = settings.allow_damaged
    times, size = seen(file, damaged, settings.end)
    whole = folder / "whole.evt"
    told = encode_file(models, file, whole, Rate(), settings)
    row: dict[str, Any] = {"frames": len(times), "size": size, "tokens": told["tokens"]}
    middle = len(times) // 2 // models.final.config.num_frames * models.final.config.num_frames
    row["ids_pieces"] = None
    if middle:
        cut = float(times[middle])
        parts = [
            EncodeSettings(**{**vars(settings), "end": cut}),
            EncodeSettings(**{**vars(settings), "start": cut}),
        ]
        names = [folder / "first.evt", folder / "second.evt"]
        for part, name in zip(parts, names, strict=True):
            encode_file(models, file, name, Rate(), part)
        joined = np.concatenate([ids_of(name) for name in names])
        row["ids_pieces"] = bool(np.array_equal(joined, ids_of(whole)))
    again = folder / "again.evt"
    was_cut = broken_off(models, file, again, settings)
    row["resumed_bytes"] = whole.read_bytes() == again.read_bytes() if was_cut else None
    video = folder / "back.mp4"
    row["sound"] = told["sound"]
    try:
        decode_file(models, whole, video)
    except VideoError as error:
        row["sound"] = f"not in mp4: {error}"
        decode_file(models, whole, video, sound=False)
    back, back_size = seen(video, False, None)
    row["frames_equal"] = len(back) == len(times)
    row["size_equal"] = back_size == (size if settings.fit != "crop" else told["shown"])
    gaps = [abs(a - b) for a, b in zip(back, times, strict=False)]
    row["times_off"] = float(max(gaps, default=0))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fit", choices=get_args(Fit), default="tile")
    parser.add_argument("--end", type=float, help="seconds of each file")
    parser.add_argument("--every", type=int, default=1, help="one file out of so many")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    models = load(arguments.model)
    found = sorted(path for folder in arguments.folders for path in videos_under(folder))
    rows = []
    for file in found[:: arguments.every]:
        row: dict[str, Any] = {"file": file.name}
        for damaged in (False, True):
            settings = EncodeSettings(
                arguments.fit, end=arguments.end, clips_per_chunk=1, allow_damaged=damaged
            )
            with tempfile.TemporaryDirectory() as folder:
                try:
                    row |= round_trip(models, file, Path(folder), settings)
                    break
                except EvatokError as error:
                    row["refused" if not damaged else "refused_damaged"] = str(error)
        rows.append(row)
        if not arguments.json:
            print(row, flush=True)
    if arguments.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
