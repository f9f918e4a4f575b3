"""Many samples, shared by many processes: a plan, chunks of it, and a manifest.

The plan numbers all samples; it depends on the arguments alone. A chunk is generated together and
is never split, so its files have the same bytes whichever process makes them and whatever was
killed before. Process r of n makes chunks r, r + n, r + 2 n …: nobody waits for another.

    samples.json          settings, hashes of the models, and what every file is
    chunks/00000.json     written when all files of that chunk are there, with their assignments
    Frogger-0-000.mp4 …   or samples-00000.npz …: `videos` (N, F, H, W, 3) uint8, `labels` (N,)
                          int64, `assignment` (N, T) int64, `numbers` (N,) int64 in the plan

Shape letters: N clips of a chunk, F frames, T blocks, H W pixels.
"""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from evatok.drawing import Panel, compose
from evatok.models import Models
from evatok.sampling import find_classes, request_seed, sample_labels
from generator.engine import SamplingConfig
from tokenizer.search import model_hash
from training.files import write_text
from training.loading.records import read_object
from training.processes import Place
from video.clips import to_frames
from video.io import write_video

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "samples.json"
CHUNKS = "chunks"

Format = Literal["mp4", "npz"]


@dataclass(frozen=True)
class Sample:
    """One clip of the plan.

    Attributes:
        number: its place in the plan, from 0.
        label: class.
        place: which clip of its class.
        seed: of its own random numbers.
        file: name of the file that holds it.
    """

    number: int
    label: int
    place: int
    seed: int
    file: str


@dataclass(frozen=True)
class Plan:
    """All samples of a command, and how they are written.

    Attributes:
        names: of all classes of the model.
        labels: classes wanted.
        count: clips of each class.
        seed: of all clips together.
        settings: how tokens are chosen.
        format: mp4: one file a clip; npz: one file a chunk, nothing lost.
        plain: mp4 of the clip alone, without bars; npz always is.
        fps: of mp4 files.
        chunk: clips that are generated together.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    count: int
    seed: int
    settings: SamplingConfig
    format: Format = "mp4"
    plain: bool = False
    fps: float = 15
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.count} clips asked for; at least 1")
        if self.chunk < 1:
            raise ValueError(f"chunks of {self.chunk} clips; at least 1")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a class is named twice; name it once and give a larger count")
        if self.format not in ("mp4", "npz"):
            raise ValueError(f"format {self.format}: mp4 or npz")

    def samples(self) -> list[Sample]:
        """Every clip, class after class."""
        rows = [(label, place) for label in self.labels for place in range(self.count)]
        return [
            Sample(number, label, place, request_seed(self.seed, label, place), self._file(number))
            for number, (label, place) in enumerate(rows)
        ]

    def chunks(self) -> list[list[Sample]]:
        """The clips in the parts in which they are made."""
        samples = self.samples()
        return [samples[start : start + self.chunk] for start in range(0, len(samples), self.chunk)]

    def _file(self, number: int) -> str:
        if self.format == "npz":
            return f"samples-{number // self.chunk:05d}.npz"
        label, place = self.labels[number // self.count], number % self.count
        return f"{self.names[label]}-{self.seed}-{place:03d}.mp4"


class Row(BaseModel):
    """What a record says of a clip."""

    model_config = ConfigDict(strict=True, extra="forbid")

    class_name: str = Field(alias="class")
    file: str
    tokens: int
    assignment: list[int]


ROWS = TypeAdapter(list[Row])


def sample_set(
    models: Models,
    class_names: Sequence[str],
    count: int,
    seed: int,
    settings: SamplingConfig,
    output: Path,
    *,
    format: Format = "mp4",
    plain: bool = False,
    fps: float = 15,
    chunk: int = 64,
    place: Place | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make this process's share of the samples that are not there yet.

    Args:
        models: generator and final tokenizer.
        class_names: classes wanted; all if none.
        count: clips of each class.
        seed: another seed, other clips.
        settings: how tokens are chosen.
        output: folder; goes on where an earlier process of the same command stopped.
        format: mp4 or npz.
        plain: the clip alone, at the tokenizer's size, without bars.
        fps: of mp4 files.
        chunk: clips that are generated together.
        place: which process this is; the only one by default.
        progress: told the clips of this share that are there, and all of the share.

    Returns:
        JSON-able: `samples` of this share with class, file, tokens and assignment; means.

    Raises:
        ValueError: the folder holds samples of another command or model, or foreign files.
    """
    names = models.generator.vocabulary.class_names
    labels = tuple(find_classes(names, class_names))
    plan = Plan(names, labels, count, seed, settings, format, plain, fps, chunk)
    place = place or Place()
    chunks = plan.chunks()
    _claim(plan, models, output)
    mine = place.share(len(chunks))
    total, rows = sum(len(chunks[index]) for index in mine), []
    for index in mine:
        record = output / CHUNKS / f"{index:05d}.json"
        recorded = _recorded(record, chunks[index])
        if recorded is None:
            _sweep(record)
            recorded = _make(models, plan, chunks[index], output)
            _write_json(record, recorded)
        rows += recorded
        if progress is not None:
            progress(len(rows), total)
    result: dict[str, Any] = {
        "samples": [row | {"file": str(output / row["file"])} for row in rows],
        "num_samples": len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows) if rows else None,
        "seed": seed,
        **settings.model_dump(),
    }
    if place.world > 1:
        result |= {"rank": place.rank, "processes": place.world}
    return result


def _recorded(record: Path, chunk: Sequence[Sample]) -> list[dict[str, Any]] | None:
    """The rows of a chunk that is done; None where it is not, told where the record is damaged."""
    if not record.is_file():
        return None
    try:
        rows = ROWS.validate_json(record.read_bytes())
    except ValidationError:
        rows = []
    if [row.file for row in rows] != [sample.file for sample in chunk]:
        log.warning("%s is damaged: its clips are generated again", record)
        return None
    return [row.model_dump(by_alias=True) for row in rows]


def _claim(plan: Plan, models: Models, output: Path) -> None:
    """Write the manifest, or make sure that the one there is of this command."""
    samples = plan.samples()
    settings = asdict(plan) | {"settings": plan.settings.model_dump(mode="json")}
    manifest = {
        "format": FORMAT,
        "models": {
            "generator": model_hash(models.generator),
            "weights": models.generator.weights,
            "tokenizer": model_hash(models.final),
        },
        "command": {**settings, "names": list(plan.names), "labels": list(plan.labels)},
        "samples": [{**asdict(s), "class": plan.names[s.label]} for s in samples],
    }
    # Files first: those of another process, begun just now, come after its manifest.
    foreign = [s.file for s in samples if (output / s.file).exists()]
    path = output / MANIFEST
    if not path.is_file():
        if foreign:
            raise ValueError(
                f"{output / foreign[0]} is there without {MANIFEST}; name a new folder"
            )
        _write_json(path, manifest)
    found = read_object(path, "remove it with the files it lists, or name a new folder")
    wrong = [key for key in manifest if found.get(key) != manifest[key]]
    if "command" in wrong and isinstance(found.get("command"), dict):
        command = manifest["command"]
        wrong = [key for key in command if found["command"].get(key) != command[key]]
    if wrong:
        raise ValueError(
            f"{output} holds samples of another command ({', '.join(wrong)}); name another folder"
        )


def _make(
    models: Models, plan: Plan, chunk: Sequence[Sample], output: Path
) -> list[dict[str, Any]]:
    """Generate and write a chunk; a clip whose file is there already is not written again."""
    labels, places = [s.label for s in chunk], [s.place for s in chunk]
    clips, tokens = sample_labels(models, labels, places, plan.seed, plan.settings)
    assignment = tokens.assignment.tolist()
    if plan.format == "npz":
        _sweep(output / chunk[0].file)
        _write_npz(output / chunk[0].file, clips, chunk, tokens.assignment)
    else:
        top = models.final.levels.values[-1]
        for sample, clip, blocks in zip(chunk, clips, assignment, strict=True):
            _sweep(output / sample.file)
            if not (output / sample.file).is_file():  # it appears whole or not at all
                name = plan.names[sample.label]
                frames = render(clip, name, blocks, top, plain=plan.plain)
                write_video(output / sample.file, frames, plan.fps)
    return [
        {
            "class": plan.names[sample.label],
            "file": sample.file,
            "tokens": sum(blocks),
            "assignment": blocks,
        }
        for sample, blocks in zip(chunk, assignment, strict=True)
    ]


def render(clip: Tensor, title: str, blocks: Sequence[int], top: int, *, plain: bool) -> np.ndarray:
    """Frames (F, H', W', 3) uint8 of a clip (3, F, H, W) in [−1, 1]; with bars unless plain."""
    frames = to_frames(clip).numpy()
    return frames if plain else compose([Panel(title, frames)], blocks, top)


def _sweep(path: Path) -> None:
    """Take away what a killed process had begun to write under this name."""
    for partial in path.parent.glob(f".{glob.escape(path.stem)}.*partial*"):
        partial.unlink(missing_ok=True)


def _write_npz(path: Path, clips: Tensor, chunk: Sequence[Sample], assignment: Tensor) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(
                file,
                videos=np.stack([to_frames(clip).numpy() for clip in clips]),
                labels=np.array([s.label for s in chunk], np.int64),
                assignment=assignment.cpu().numpy(),
                numbers=np.array([s.number for s in chunk], np.int64),
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1))
