"""`evatok decode` and `show`: token files back to videos, a chunk at a time.

Shape letters: F frames, N tiles, T blocks, S side of a tile.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from evatok.core.files import atomic_file
from evatok.core.paths import refuse_overwrite
from evatok.hub import Models
from evatok.model_folders import FOR_VIDEOS, shipped_models
from tokenizer.evt.codec import ChunkDecoder
from tokenizer.evt.format import EvtError
from tokenizer.evt.reader import EvtReader
from video.clips import resize
from video.decoding.container import VideoError
from video.timed import SUFFIXES, copy_sound, write_timed
from video.writing import write_video

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ROUNDING = 1e-6  # seconds by which a time written as a decimal may be off

FileProgress = Callable[[str, int, int | None], None]  # file, frames done, frames in all if known


def decode_file(
    models: Models,
    source: Path,
    target: Path,
    *,
    start: float = 0.0,
    end: float | None = None,
    native: bool = False,
    sound: bool = True,
    allow_damaged: bool = False,
    smooth: bool = True,
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Decode a token file into a video, a GIF or a picture.

    Args:
        models: whose `final` tokenizer made the file.
        source: FILE.evt.
        target: .mp4, .mov, .mkv; .gif, which is put together in memory, all of its frames; or a
            picture's suffix for a file of one frame.
        start: seconds after the first frame.
        end: likewise; None: to its end.
        native: at the coded size instead of the source's.
        sound: with the sound track; of a part, its packets of that part. GIFs and pictures have
            none.
        allow_damaged: decode what is intact; what is lost is told in `damage`.
        smooth: spread the jumps between clips (`tokenizer.evt.borders`).
        progress: told after every chunk.

    Raises:
        EvtError: no token file, another model's, or damaged; no frames in the wanted part; a
            suffix that cannot be written.
    """
    check_decoding(source, target, start, end)
    with EvtReader(source) as reader, tempfile.TemporaryDirectory(prefix="evatok-") as folder:
        decoder = ChunkDecoder(reader.header, models.final.eval())
        track = None
        if sound and reader.header.sound and target.suffix.lower() in SUFFIXES:
            track = _sound(reader, Path(folder), start, end)
        pictures = _decoded(reader, decoder, start, end, native, progress, allow_damaged, smooth)
        first = next(pictures, None)
        if first is None and (start or end is not None):
            raise _no_frames(reader, start, end)
        pictures = pictures if first is None else chain([first], pictures)
        count = _write(target, pictures, reader.header.tick, track)
        return {
            "file": str(source),
            "output": str(target),
            "frames": count,
            "sound": track is not None,
            "damage": reader.damage,
        }


def check_decoding(source: Path, target: Path, start: float, end: float | None) -> None:
    """Check paths and the wanted part, before a model is loaded.

    Args:
        source: FILE.evt.
        target: of `decode_file`.
        start: likewise.
        end: likewise.

    Raises:
        EvatokError: no token file, no frames in the wanted part, a suffix that cannot be written,
            or the file itself as the target.
    """
    refuse_overwrite([target], [source])
    if target.suffix.lower() not in (*SUFFIXES, ".gif", *IMAGES):
        raise EvtError(
            f"{target}: write {', '.join(SUFFIXES)}, .gif, or of one frame a picture: "
            f"{', '.join(IMAGES)}"
        )
    if start < 0 or (end is not None and end <= start):
        raise EvtError(f"from {start:g} to {end} seconds is no part of a video")
    with EvtReader(source) as reader:
        if start and reader.seconds is not None and start - ROUNDING > reader.seconds:
            raise _no_frames(reader, start, end)


def _no_frames(reader: EvtReader, start: float, end: float | None) -> EvtError:
    part = f"{start:g} s or later" if end is None else f"{start:g} to {end:g} s"
    last = reader.seconds
    told = "" if last is None else f": the last comes after {float(last):.2f} s"
    return EvtError(f"{reader.path}: no frame comes {part} after the first{told}")


def _sound(reader: EvtReader, folder: Path, start: float, end: float | None) -> Path | None:
    """Write the sound of the wanted part to a file below a folder; None if there is none."""
    track = folder / "sound.mka"
    with open(track, "wb") as file:
        for piece in reader.sound():
            file.write(piece)
    if not track.stat().st_size:
        return None
    if start == 0 and end is None:
        return track
    origin, part = reader.first_tick * reader.header.tick, folder / "part.mka"
    first = origin + Fraction(start) if start else None
    last = None if end is None else origin + Fraction(end)
    try:
        return part if copy_sound(track, part, first, last) else None
    except VideoError as error:
        raise EvtError(str(error).replace(str(track), str(reader.path))) from error


def _decoded(
    reader: EvtReader,
    decoder: ChunkDecoder,
    start: float,
    end: float | None,
    native: bool,
    progress: FileProgress | None,
    allow_damaged: bool,
    smooth: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    tick, origin, done = reader.header.tick, None, 0
    last = math.inf if end is None else end - ROUNDING
    total = reader.num_frames if start == 0 and end is None else None
    first = reader.frame_at(start) if start else 0
    context = [chunk for chunk in [reader.before(first)] if chunk is not None]
    for clip in decoder.clips(chain(context, reader.chunks(first)), first, smooth):
        _refuse_damage(reader, allow_damaged)
        if origin is None:
            origin = reader.first_tick if start else clip.times[0]
        wanted = [
            place
            for place, ticks in enumerate(clip.times)
            if start - ROUNDING <= (ticks - origin) * tick < last
        ]
        if not wanted and (clip.times[0] - origin) * tick >= last:
            return
        for place in wanted:  # one at a time: they may be shown much larger than they are coded
            picture = clip.pictures[place]
            shown = picture if native else resize(picture[None], reader.header.shown)[0]
            yield clip.times[place], shown.numpy()
        done += len(wanted)
        if progress is not None and wanted:
            progress(reader.path.name, done, total)
    _refuse_damage(reader, allow_damaged)


def _refuse_damage(reader: EvtReader, allow_damaged: bool) -> None:
    if reader.damage and not allow_damaged:
        raise EvtError(f"{reader.path}: {reader.damage[0]}: --allow-damaged decodes what is intact")


def _write(
    target: Path, pictures: Iterator[tuple[int, np.ndarray]], tick: Fraction, sound: Path | None
) -> int:
    suffix = target.suffix.lower()
    if suffix not in IMAGES and suffix != ".gif":
        return write_timed(target, pictures, tick, sound)
    timed = list(pictures if suffix == ".gif" else islice(pictures, 2))
    if not timed:
        raise EvtError(f"{target}: there are no frames to write")
    if suffix == ".gif":
        times = [ticks * tick for ticks, _ in timed]
        rate = (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 25.0
        write_video(target, (picture for _, picture in timed), rate, times=times)
        return len(timed)
    if len(timed) > 1:
        raise EvtError(
            f"{target}: a picture holds one frame, and there are more: name a video, or choose one "
            "with --start and --end"
        )
    with atomic_file(target) as partial_file:
        iio.imwrite(partial_file, timed[0][1])
    return 1


def show_file(path: Path) -> dict[str, Any]:
    """Contents of a token file, read to its end and not decoded."""
    with EvtReader(path) as reader:
        header = reader.header
        frames = tokens = blocks = 0
        used = dict.fromkeys(header.levels, 0)
        first = last = None
        for chunk in reader.chunks():
            frames += len(chunk.times)
            tokens += len(chunk.ids)
            for part in chunk.assignment:
                blocks += part.size
                for level, number in zip(*np.unique(part, return_counts=True), strict=True):
                    used[int(level)] += int(number)
            first = chunk.times[0] if first is None else first
            last = chunk.times[-1]
        for _ in reader.sound():  # its damage is told
            pass
        seconds = 0.0 if first is None or last is None else float((last - first) * header.tick)
        pixels = frames * header.height * header.width
        size = path.stat().st_size
        return {
            "file": str(path),
            "model": header.model,
            "weights": header.weights,
            "source": header.source,
            "frames": frames,
            "seconds": seconds,
            "size": [header.width, header.height],
            "shown": [header.shown[1], header.shown[0]],
            "tiles": len(header.grid),
            "fit": header.fit,
            "assignment": header.assignment,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds if seconds else None,
            "blocks_at_level": {str(level): number for level, number in used.items()},
            "bytes": size,
            "bits_per_pixel": 8 * size / pixels if pixels else None,
            "sound": bool(header.sound),
            "complete": reader.is_complete,
            "damage": reader.damage,
        }


def named_model(source: Path) -> str:
    """Return the name of the shipped model that made a token file, as its header tells.

    Another model's name is not looked for: that of videos is given, which refuses the file.

    Raises:
        EvtError: no token file.
    """
    with EvtReader(source) as reader:
        return reader.header.model if reader.header.model in shipped_models() else FOR_VIDEOS
