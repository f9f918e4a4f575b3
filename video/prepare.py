"""Copies of videos for training: small, at one rate if asked, a key frame every few frames.

Each file is written under a temporary name and renamed; a journal says what is finished, so that a
run which was killed goes on, with any number of processes. Nothing of the originals is changed.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from evatok.core.files import naming, write_text
from evatok.core.processes.locks import held
from evatok.core.processes.pools import in_processes
from video.cache import parallel
from video.clips import covering, resize
from video.decoding.container import VideoError, damaged_allowed
from video.reading import frame_times, iter_timed, probe
from video.seek import count_frames
from video.writing import exact_rate, write_video

log = logging.getLogger(__name__)

JOURNAL = "prepared.jsonl"
REPORT = "prepared.json"  # in a folder of copies that is whole
CHUNK = 32  # frames resized together
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
    "placebo",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Encoding of the rewritten files.

    Attributes:
        size: pixels of the short side; the aspect stays.
        keyframe_every: frames from one key frame to the next.
        crf: quality of H.264, 0 (lossless) to 51.
        preset: of x264.
        fps: frames a second, by nearest time; None = as they are, or of a file whose frames come
            at uneven times its mean rate.

    Raises:
        VideoError: a value that nothing can be written with.
    """

    size: int = 128
    keyframe_every: int = 16
    crf: int = 18
    preset: str = "medium"
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None:
            exact_rate(self.fps)
        if self.preset not in PRESETS:
            raise VideoError(f"preset {self.preset!r} is none of x264's: {', '.join(PRESETS)}")


@dataclass(frozen=True)
class Done:
    """One file's fate: frames written, with size and SHA-256 of the copy, or why not.

    Attributes:
        source: size and time of change (ns) of an original that could not be read; None where it
            is not known.
    """

    file: str
    frames: int
    error: str = ""
    size: int = 0
    sha256: str = ""
    source: tuple[int, int] | None = None


DONE = TypeAdapter(Done)


def resampled(frames: Iterable[tuple[Fraction, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """At k / fps after the first frame the frame that is nearest in time, the earlier of two.

    Args:
        frames: (time in seconds, picture), in order of time.
        fps: frames a second that come out, up to the time of the last frame.
    """
    step = 1 / exact_rate(fps)
    start: Fraction | None = None
    before: tuple[Fraction, np.ndarray] | None = None
    number = 0
    for time, picture in frames:
        if start is None:
            start = time
        while (wanted := start + number * step) <= time:
            if before is not None and wanted - before[0] <= time - wanted:
                yield before[1]
            else:
                yield picture
            number += 1
        before = (time, picture)


def rewrite(source: Path, target: Path, recipe: Recipe) -> int:
    """Write one file and return its frames, counted in what was written.

    Raises:
        VideoError: the source is damaged, anywhere.
    """
    info = probe(source)
    # Copies are of one rate: a window of frames is found by its time.
    timing = frame_times(source)
    is_even = recipe.fps is None and timing.is_even
    rate = recipe.fps or (info.fps if is_even else timing.mean_rate)
    height, width = covering(info.height, info.width, recipe.size)
    written = 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal written
        timed = iter_timed(source)
        plain = (picture for _, picture in timed) if is_even else resampled(timed, rate)
        while chunk := list(islice(plain, CHUNK)):
            for _, run in groupby(chunk, key=np.shape):  # a file may change its size on the way
                for frame in resize(torch.from_numpy(np.stack(list(run))), (height, width)).numpy():
                    written += 1
                    # H.264 wants even sides. Without its last row or column an odd picture has
                    # its centre crop where it was.
                    yield frame[: height // 2 * 2, : width // 2 * 2]

    write_video(target, pictures(), rate, recipe.crf, recipe.keyframe_every, recipe.preset)
    found = count_frames(target)
    if found != written:
        target.unlink()
        raise VideoError(f"{source}: {written} frames written, {found} are in the copy")
    return found


def prepared_name(file: str) -> str:
    """The copy's name: the original's, as .mp4."""
    return str(Path(file).with_suffix(".mp4").as_posix())


def prepare(
    files: Sequence[str],
    root: Path,
    output: Path,
    recipe: Recipe,
    *,
    max_damaged: float = 0.05,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Done]:
    """Rewrite all files below another folder; goes on where it was.

    Args:
        files: below `root`.
        root: of the originals.
        output: folder of the copies, of its journal.
        recipe: the same for all of a folder.
        max_damaged: share of damaged files above which to stop; see `damaged_allowed`.
        workers: processes; no change to the bytes.
        progress: called with files done and their number.

    Returns:
        A row for each file, in order.

    Raises:
        VideoError: too many damaged files, two files of one name, or copies of another recipe.
    """
    names = [prepared_name(file) for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise VideoError(f"{root}: two files become {twice}: rename one")
    output.mkdir(parents=True, exist_ok=True)
    # A second process would take the line that another is writing for that of a killed one.
    with held(output / f".{JOURNAL}.lock"):
        return _prepare(files, root, output, recipe, max_damaged, workers, progress)


def _prepare(
    files: Sequence[str],
    root: Path,
    output: Path,
    recipe: Recipe,
    max_damaged: float,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[Done]:
    """Do what `prepare` does, as the only process in the folder."""
    journal = output / JOURNAL
    finished = _read_journal(journal, recipe)
    rows = list(finished.values())
    whole = parallel(partial(_is_final, root, output), rows, workers)
    finished = {row.file: row for row, is_whole in zip(rows, whole, strict=True) if is_whole}
    todo = [file for file in files if file not in finished]
    jobs = [(root / file, output / prepared_name(file), file, recipe) for file in todo]
    count, damaged = (
        len(files) - len(todo),
        sum(bool(finished[f].error) for f in files if f in finished),
    )
    if progress is not None:
        progress(count, len(files))
    with naming(journal), journal.open("a", encoding="utf-8") as log:
        for done in in_processes(_job, jobs, workers):
            finished[done.file] = done
            log.write(json.dumps(asdict(done)) + "\n")
            log.flush()
            os.fsync(log.fileno())
            count, damaged = count + 1, damaged + bool(done.error)
            if damaged > damaged_allowed(max_damaged, len(files)):
                raise VideoError(
                    f"{damaged} of {len(files)} videos are damaged, more than max_damaged "
                    f"{max_damaged:g} allows; {journal} names them, the last: {done.error}"
                )
            if progress is not None:
                progress(count, len(files))
    return [finished[file] for file in files]


def _job(job: tuple[Path, Path, str, Recipe]) -> Done:
    source, target, file, recipe = job
    torch.set_num_threads(1)
    before = _stamp(source)
    try:
        frames = rewrite(source, target, recipe)
    except VideoError as error:
        return Done(file, 0, str(error), source=before)
    for path in (target, target.parent):  # on disk before the journal says so
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return Done(file, frames, size=target.stat().st_size, sha256=_sha256(target))


def _is_final(root: Path, output: Path, done: Done) -> bool:
    """Whether a copy is as it was written, or its original as it was when it could not be read."""
    path = output / prepared_name(done.file)
    if done.error:
        return done.source is not None and done.source == _stamp(root / done.file)
    return path.is_file() and path.stat().st_size == done.size and _sha256(path) == done.sha256


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change (ns) of a file; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_journal(path: Path, recipe: Recipe) -> dict[str, Done]:
    """Finished files. The first line holds the recipe; lines that are no rows are dropped."""
    wanted = asdict(recipe)
    if not path.is_file():
        write_text(path, json.dumps(wanted) + "\n")
        return {}
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # killed while it wrote a line
        with path.open("r+", encoding="utf-8") as file:
            file.truncate(len(whole.encode(errors="surrogateescape")))
    first, *rest = whole.splitlines() or [""]
    try:
        recorded = json.loads(first)
    except (ValueError, RecursionError):
        raise VideoError(
            f"{path} is damaged: its first line holds no settings: remove it, and the copies are "
            "made again"
        ) from None
    if recorded != wanted:
        raise VideoError(
            f"{path.parent} holds copies of other settings ({first}): choose another folder or "
            "the same settings"
        )
    done: dict[str, Done] = {}
    for number, line in enumerate(rest, 2):
        try:
            row = DONE.validate_json(line.encode(errors="surrogateescape"))
        except ValidationError:
            log.warning("%s:%d is no row: that file is prepared again", path, number)
        else:
            done[row.file] = row
    return done


def check_file(job: tuple[Path, bool]) -> str:
    """Fault of a file, "" if none; checks its first frame, or (True) all."""
    path, is_full = job
    try:
        if is_full:
            for _ in iter_timed(path):
                pass
        else:
            probe(path)
    except VideoError as error:
        return str(error)
    return ""
