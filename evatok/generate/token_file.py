"""`evatok encode`: videos to token files, a chunk at a time; `decoding.py` is the way back.

Frames are read, encoded and written chunk by chunk: memory does not grow with a video's length.

Shape letters: F frames, N tiles, T blocks, S side of a tile.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation.scoring.readers import ARRAYS
from evatok.core.compute.devices import device_of
from evatok.core.errors import EvatokError
from evatok.core.paths import printable, refuse_overwrite
from evatok.generate.decoding import ROUNDING, FileProgress, show_file
from evatok.generate.token_rate import Rate, assigner_for, router_for, tiles_of
from evatok.hub import Models
from evatok.model_folders import FOR_PICTURES, FOR_VIDEOS
from tokenizer.coding.exact import ExactEncoder
from tokenizer.evt.budget import BudgetAssigner
from tokenizer.evt.codec import (
    ChunkEncoder,
    Timed,
    runs,
    shape_of,
)
from tokenizer.evt.equal_slope import PlannedAssigner
from tokenizer.evt.format import COMMON_TICK, MAX_COUNT, Chunk, Header
from tokenizer.evt.pictures import Fit, coded_size, shown_size
from tokenizer.evt.writer import EvtWriter, sound_size
from tokenizer.search.candidates import model_hash
from video.clips import sides
from video.decoding.container import VideoError
from video.decoding.stills import PICTURES, is_still
from video.folder import SUFFIXES
from video.reading import OnDamage, first_time, frame_times, iter_timed, probe
from video.timed import SOUND_FORMAT, copy_sound, time_base_of

logger = logging.getLogger(__name__)

LATEST = 1e9  # seconds of a video: thirty years
DIGEST_BYTES = 1 << 20  # of each end of a source, to tell it from others


@dataclass(frozen=True)
class EncodeSettings:
    """Everything but the rate.

    Attributes:
        fit: see `tokenizer.evt.pictures`.
        overlap: pixels that neighbouring tiles share; an eighth of a tile if None.
        start: seconds after the first frame.
        end: likewise; None: the video's end.
        sound: carry the sound track along, its packets of the wanted part.
        clips_per_chunk: clips that are lost together where a file is damaged.
        batch_size: tiles computed at once; of no effect on tokens that are not refined.
        allow_damaged: encode what can be read of a damaged video.
        refine_steps: of the search for better tokens (`tokenizer.coding.refined`).
    """

    fit: Fit = "tile"
    overlap: int | None = None
    start: float = 0.0
    end: float | None = None
    sound: bool = True
    clips_per_chunk: int = 4
    batch_size: int = 32
    allow_damaged: bool = False
    refine_steps: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise EvatokError(f"from {self.start} to {self.end} seconds is no part of a video")
        if max(self.start, self.end or 0) > LATEST:
            raise EvatokError(f"no video is longer than {LATEST:g} seconds: give less")
        if self.refine_steps < 0:
            raise EvatokError(f"{self.refine_steps} steps of refinement: give 0 or more")


def source_digest(path: Path) -> str:
    """16 hex digits that tell a file from others: of its size, its first and its last bytes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.sha256(f"{size}:".encode() + file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()[:16]


def encode_file(
    models: Models,
    source: Path,
    target: Path,
    rate: Rate | None = None,
    settings: EncodeSettings | None = None,
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Encode a video into a token file; one that was broken off is continued.

    Args:
        models: with a tokenizer (`final`) and a router.
        source: a video or a picture.
        target: FILE.evt.
        rate: how many tokens to spend; the router's choice if None.
        settings: see `EncodeSettings`.
        progress: told after every chunk.

    Returns:
        JSON-able: file, frames, tokens, bytes, bits per pixel and what `describe` tells.

    Raises:
        VideoError: the source cannot be read.
        EvatokError: no frames in the wanted part, a budget below the shortest assignments, or
            options that do not fit each other.
    """
    rate, settings = rate or Rate(), settings or EncodeSettings()
    refuse_overwrite([target, target.with_name(target.name + ".partial")], [source])
    header = header_of_file(models, source, rate, settings)
    damage: dict[str, None] = {}  # each loss once, though there may be several passes
    on_damage = (lambda found: damage.setdefault(str(found))) if settings.allow_damaged else None
    frames = partial(frames_of, source, settings, on_damage)
    if settings.start and next(frames(), None) is None:
        raise EvatokError(
            f"{source}: no frame comes {_range_of(settings)} after the first: the last comes "
            f"after {_seconds_of(source):.2f} s"
        )
    with tempfile.TemporaryDirectory(prefix="evatok-") as folder:
        track = Path(folder) / "sound.mka"
        if header.sound and not copy_sound(source, track, *part_of(source, settings)):
            header = header.model_copy(update={"sound": ""})
        spent = sound_size(track.stat().st_size) if header.sound else 0
        total = probe(source).num_frames if settings.start == 0 and settings.end is None else None
        with EvtWriter(target, header) as writer:
            begun = Begun(writer.next_frame, writer.last_tick)
            for chunk in encode_frames(
                models, header, rate, frames, settings, begun=begun, sound_bytes=spent
            ):
                writer.write(chunk)
                if progress is not None:
                    progress(source.name, writer.next_frame, total)
            if header.sound:
                writer.write_sound(track)
            writer.close(complete=True)
    told = show_file(target)
    return told | {"source_damage": list(damage)} if settings.allow_damaged else told


def encode_files(
    load_for: Callable[[Path], Models],
    sources: Sequence[Path],
    output: Path,
    rate: Rate | None = None,
    settings: EncodeSettings | None = None,
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Encode videos, each into a token file of its own; one that cannot be is passed over.

    Args:
        load_for: gives the models of a file.
        sources: videos and pictures.
        output: FILE.evt of one source, or a folder.
        rate: as of `encode_file`.
        settings: likewise.
        progress: likewise.

    Returns:
        JSON-able: `files` as `encode_file` tells each; `refused`, the others, each with a reason.

    Raises:
        EvatokError: of the first, if no file could be encoded.
    """
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    first: EvatokError | None = None
    for source, target in zip(sources, targets(sources, output, ".evt"), strict=True):
        models = load_for(source)
        try:
            rows.append(encode_file(models, source, target, rate, settings, progress))
        except EvatokError as error:
            first = first or error
            if len(sources) > 1:
                logger.warning("left out: %s", error)
            refused.append({"file": str(source), "reason": str(error)})
    if not rows and first is not None:
        raise first
    return {"files": rows, "refused": refused}


def require_all_encoded(result: dict[str, Any]) -> None:
    """Check that a result of `encode_files` leaves no file out.

    Raises:
        EvatokError: it does; they are named, each with its reason.
    """
    out = [
        row["reason"] if row["file"] in row["reason"] else f"{row['file']}: {row['reason']}"
        for row in result["refused"]
    ]
    if out:
        total = len(out) + len(result["files"])
        raise EvatokError(f"{len(out)} of {total} files could not be encoded: {'; '.join(out)}")


def _range_of(settings: EncodeSettings) -> str:
    """Name the part of a video that is asked for."""
    if settings.end is None:
        return f"{settings.start:g} s or later"
    return f"{settings.start:g} to {settings.end:g} s"


def _seconds_of(source: Path) -> float:
    """Seconds from the first frame of a video to its last."""
    seen = frame_times(source)
    if not seen.times:  # the container keeps none
        return (seen.packets - 1) / probe(source).fps
    return float(seen.times[-1] - seen.times[0])


@dataclass(frozen=True)
class Begun:
    """Progress of a partial file: number of frames, and tick of the last one."""

    frames: int = 0
    last_tick: int | None = None


def encode_frames(
    models: Models,
    header: Header,
    rate: Rate,
    frames: Callable[[], Iterator[Timed]],
    settings: EncodeSettings,
    *,
    begun: Begun = Begun(),
    sound_bytes: int = 0,
) -> Iterator[Chunk]:
    """Encode the frames of a video, chunk by chunk.

    Args:
        models: with a tokenizer (`final`) and a router.
        header: see `header_of`.
        rate: how many tokens to spend.
        frames: begins a pass over the video; a budget takes several.
        settings: as `header_of` was given; batch size and refinement are used.
        begun: what is passed over.
        sound_bytes: of the file, taken by the sound, which count for `max_bytes`.
    """
    model = models.final.eval()
    encoder = ExactEncoder(model, router_for(models, rate))
    size = settings.batch_size
    assign = assigner_for(models, encoder, header, rate, frames, sound_bytes, size)
    coder = ChunkEncoder(header, encoder, assign, size, settings.refine_steps)
    if isinstance(assign, (BudgetAssigner, PlannedAssigner)):  # they count the clips before
        done = islice(frames(), begun.frames)
        for batch in tiles_of(header, done, size, device_of(model)):
            assign(batch)
    first, previous = begun.frames, begun.last_tick
    for run in runs(islice(frames(), first, None), header.frames_per_chunk):
        chunk = coder.encode(run, first, previous)
        yield chunk
        first, previous = first + len(chunk.times), chunk.times[-1]


def header_of(
    models: Models,
    height: int,
    width: int,
    tick: Fraction,
    rate: Rate,
    settings: EncodeSettings,
    source: str = "",
) -> Header:
    """Return what a decoder must know of a video.

    Args:
        models: with a tokenizer (`final`).
        height: of the video, pixels.
        width: likewise.
        tick: seconds of a unit of time.
        rate: how many tokens to spend.
        settings: see `EncodeSettings`.
        source: the video's name.

    Raises:
        EvatokError: tiles that would share more than half.
    """
    model = models.final
    config, size = model.config, model.config.size
    half = min(sides(size)) // 2
    if settings.overlap is not None and not 0 <= settings.overlap <= half:
        raise EvatokError(
            f"overlap {settings.overlap}: neighbouring tiles of this model share 0 to {half} pixels"
        )
    coded_height, coded_width = coded_size(settings.fit, height, width, size)
    refined = f" refined {settings.refine_steps}" if settings.refine_steps else ""
    return Header(
        model=printable(models.directory.name),
        weights=model_hash(model),
        **shape_of(model),
        overlap=min(sides(size)) // 8 if settings.overlap is None else settings.overlap,
        height=coded_height,
        width=coded_width,
        shown=shown_size(settings.fit, height, width, size),
        time_base=(tick.numerator, tick.denominator),
        frames_per_chunk=config.num_frames * settings.clips_per_chunk,
        fit=settings.fit,
        assignment=rate.describe() + refined,
        source=source,
        sound=SOUND_FORMAT if settings.sound else "",
    )


def header_of_file(models: Models, source: Path, rate: Rate, settings: EncodeSettings) -> Header:
    """Return the header of a file's tokens, as `header_of` does of a video's.

    Times are in the file's own unit, or in `COMMON_TICK` where a header cannot hold that.
    """
    info, is_whole = probe(source), settings.start == 0 and settings.end is None
    part = "" if is_whole else f" {settings.start}-{settings.end}"
    name = f"{printable(source.name)} {source_digest(source)}{part}"
    tick = time_base_of(source)
    if max(tick.numerator, tick.denominator) > MAX_COUNT:
        tick = COMMON_TICK
    return header_of(models, info.height, info.width, tick, rate, settings, name)


def part_of(source: Path, settings: EncodeSettings) -> tuple[Fraction | None, Fraction | None]:
    """Times, as frames have them, between which the wanted part lies; None: no bound."""
    origin = first_time(source)
    start = origin + Fraction(settings.start) if settings.start else None
    return start, None if settings.end is None else origin + Fraction(settings.end)


def frames_of(
    source: Path, settings: EncodeSettings, on_damage: OnDamage | None
) -> Iterator[Timed]:
    """Frames of the wanted part, with their times.

    Raises:
        VideoError: the source cannot be read, or its pictures have several sizes.
    """
    origin, info = first_time(source), probe(source)
    for time, picture in iter_timed(source, on_damage, settings.start):
        if picture.shape[:2] != (info.height, info.width):
            raise VideoError(f"{source}: changes its size on the way; convert it to one size")
        if settings.end is not None and time - origin >= settings.end - ROUNDING:
            return
        if time - origin >= settings.start - ROUNDING:
            yield time, picture


def default_model(source: Path) -> str:
    """Return the name of the shipped model for a file: pictures have one of their own."""
    return FOR_PICTURES if is_still(source) else FOR_VIDEOS


def targets(sources: Sequence[Path], output: Path, suffix: str) -> list[Path]:
    """Output path of each file: in a folder, or one file under the given name.

    Raises:
        EvatokError: two files of one name, several files and no folder, or a name that is another
            kind of file's.
    """
    given = output.suffix.lower()
    if len(sources) == 1 and given == suffix:
        return [output]
    if not output.is_dir():
        if len(sources) > 1 and (given == suffix or output.exists()):
            raise EvatokError(f"{output}: several files need a folder")
        if output.exists() or given in (*SUFFIXES, *PICTURES, *ARRAYS):
            raise EvatokError(f"{output}: name a file that ends in {suffix}, or a folder")
    names = [source.stem for source in sources]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise EvatokError(f"several files are called {', '.join(twice)}: encode them apart")
    return [output / f"{name}{suffix}" for name in names]
