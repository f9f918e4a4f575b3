"""Many samples, shared by many processes: a plan, chunks of it, and a manifest.

The plan numbers all samples; it depends on the arguments alone. A chunk is generated together and
is never split, so its files have the same bytes whichever process makes them and whatever was
killed before. Process r of n makes chunks r, r + n, r + 2 n …: nobody waits for another.

    samples.json          settings, hashes of the models, and what every file is
    chunks/00000.json     written when all files of that chunk are there, with their assignments,
                          sizes and SHA-256: what was deleted or cut since is made again
    Frogger-0-000.mp4 …   or samples-00000.npz …: `videos` (N, F, H, W, 3) uint8, `labels` (N,)
                          int64, `assignment` (N, T) int64, `numbers` (N,) int64 in the plan

Shape letters: N clips of a chunk, F frames, T blocks, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.files import atomic_file, sweep, write_text
from evatok.core.loading.records import read_object
from evatok.core.paths import refuse_overwrite, safe_names
from evatok.core.processes.distributed import RankInfo
from evatok.generate.samples import find_classes, request_seed, sample_labels
from evatok.hub import Models
from evatok.report.drawing import Panel, compose
from generator.inference.requests import SamplingConfig
from tokenizer.search.candidates import model_hash
from video.clips import to_frames
from video.writing import write_video

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "samples.json"
CHUNKS = "chunks"
SHOWN = ("class", "file", "tokens", "assignment")  # of a row, beside its file's mark

Format = Literal["mp4", "npz"]


@dataclass(frozen=True)
class Sample:
    """One clip of the plan.

    Attributes:
        number: its place in the plan, from 0.
        label: class.
        sample_index: which clip of its class.
        seed: of its own random numbers.
        file: name of the file that holds it.
    """

    number: int
    label: int
    sample_index: int
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
            raise EvatokError(f"{self.count} clips asked for; at least 1")
        if self.chunk < 1:
            raise EvatokError(f"chunks of {self.chunk} clips; at least 1")
        if len(set(self.labels)) < len(self.labels):
            raise EvatokError("a class is named twice; name it once and give a larger count")
        if self.format not in ("mp4", "npz"):
            raise EvatokError(f"format {self.format}: mp4 or npz")

    def samples(self) -> list[Sample]:
        """Every clip, class after class."""
        rows = [(label, index) for label in self.labels for index in range(self.count)]
        stems = safe_names(self.names)
        files = [
            f"samples-{number // self.chunk:05d}.npz"
            if self.format == "npz"
            else f"{stems[label]}-{self.seed}-{index:03d}.mp4"
            for number, (label, index) in enumerate(rows)
        ]
        return [
            Sample(number, label, index, request_seed(self.seed, label, index), files[number])
            for number, (label, index) in enumerate(rows)
        ]

    def chunks(self) -> list[list[Sample]]:
        """The clips in the parts in which they are made."""
        samples = self.samples()
        return [samples[start : start + self.chunk] for start in range(0, len(samples), self.chunk)]


class Row(BaseModel):
    """Entry of a record for a clip."""

    model_config = ConfigDict(strict=True, extra="forbid")

    class_name: str = Field(alias="class")
    file: str
    tokens: int
    assignment: list[int]
    mark: list[int | str]  # bytes and SHA-256 of the file


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
    process: RankInfo | None = None,
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
        process: which one this is; the only one by default.
        progress: told the clips of this share that are there, and all of the share.

    Returns:
        JSON-able: `samples` of this share with class, file, tokens and assignment; means.

    Raises:
        EvatokError: the folder holds samples of another command or model, or foreign files; a
            limit on tokens that cannot be obeyed, before anything is written.
    """
    names = models.generator.vocabulary.class_names
    labels = tuple(find_classes(names, class_names))
    plan = Plan(names, labels, count, seed, settings, format, plain, fps, chunk)
    process = process or RankInfo()
    vocabulary = models.generator.vocabulary
    settings.budget.check(vocabulary, vocabulary.num_blocks)
    chunks = plan.chunks()
    _claim(plan, models, output)
    sweep(output)
    mine = process.shard(len(chunks))
    total, rows = sum(len(chunks[index]) for index in mine), []
    for index in mine:
        record = output / CHUNKS / f"{index:05d}.json"
        made, whole = _recorded(record, chunks[index], output)
        if made is None:
            made = _make(models, plan, chunks[index], output, whole)
            _write_json(record, made)
        rows += made
        if progress is not None:
            progress(len(rows), total)
    result: dict[str, Any] = {
        "samples": [
            {key: row[key] for key in SHOWN} | {"file": str(output / row["file"])} for row in rows
        ],
        "num_samples": len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows) if rows else None,
        "seed": seed,
        **settings.model_dump(),
    }
    if process.world > 1:
        result |= {"rank": process.rank, "processes": process.world}
    return result


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
    outputs = [output, output / MANIFEST, *(output / s.file for s in samples)]
    refuse_overwrite(outputs, [models.directory])
    foreign = [s.file for s in samples if (output / s.file).exists()]
    path = output / MANIFEST
    if not path.is_file():
        if foreign:
            raise EvatokError(
                f"{output / foreign[0]} is there without {MANIFEST}; name a new folder"
            )
        _write_json(path, manifest)
    found = read_object(path, "remove it with the files it lists, or name a new folder")
    wrong = [key for key in manifest if found.get(key) != manifest[key]]
    if "command" in wrong and isinstance(found.get("command"), dict):
        command = manifest["command"]
        wrong = [key for key in command if found["command"].get(key) != command[key]]
    if wrong:
        raise EvatokError(
            f"{output} holds samples of another command ({', '.join(wrong)}); name another folder"
        )


def _recorded(
    record: Path, chunk: Sequence[Sample], output: Path
) -> tuple[list[dict[str, Any]] | None, set[str]]:
    """The record of a chunk, None unless its files are as they were written; those that are."""
    if not record.is_file():
        return None, set()
    try:
        rows = [row.model_dump(by_alias=True) for row in ROWS.validate_json(record.read_bytes())]
    except ValidationError:
        rows = []
    files = [sample.file for sample in chunk]
    if [row["file"] for row in rows] != files:
        log.warning("%s is damaged: its clips are generated again", record)
        return None, set()
    marks = _marks(files, output)
    whole = {row["file"] for row in rows if marks[row["file"]] == row["mark"]}
    return (rows if whole == set(files) else None), whole


def _marks(files: Sequence[str], output: Path) -> dict[str, list[Any] | None]:
    """Bytes and SHA-256 of each file, None where it is absent."""
    marks: dict[str, list[Any] | None] = dict.fromkeys(files)
    for name in marks:
        path = output / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            marks[name] = [path.stat().st_size, digest]
    return marks


def _make(
    models: Models, plan: Plan, chunk: Sequence[Sample], output: Path, whole: set[str]
) -> list[dict[str, Any]]:
    """Generate and write a chunk, but for the files that are whole."""
    labels, sample_indices = [s.label for s in chunk], [s.sample_index for s in chunk]
    clips, tokens = sample_labels(models, labels, sample_indices, plan.seed, plan.settings)
    assignment = tokens.assignment.tolist()
    if plan.format == "npz":
        _write_npz(output / chunk[0].file, clips, chunk, tokens.assignment)
    else:
        top = models.final.levels.values[-1]
        for sample, clip, blocks in zip(chunk, clips, assignment, strict=True):
            if sample.file not in whole:
                name = plan.names[sample.label]
                frames = render(clip, name, blocks, top, plain=plan.plain)
                write_video(output / sample.file, frames, plan.fps)
    marks = _marks([sample.file for sample in chunk], output)
    return [
        {
            "class": plan.names[sample.label],
            "file": sample.file,
            "tokens": sum(blocks),
            "assignment": blocks,
            "mark": marks[sample.file],
        }
        for sample, blocks in zip(chunk, assignment, strict=True)
    ]


def render(clip: Tensor, title: str, blocks: Sequence[int], top: int, *, plain: bool) -> np.ndarray:
    """Frames (F, H', W', 3) uint8 of a clip (3, F, H, W) in [−1, 1]; with bars unless plain."""
    frames = to_frames(clip).numpy()
    return frames if plain else compose([Panel(title, frames)], blocks, top)


def _write_npz(path: Path, clips: Tensor, chunk: Sequence[Sample], assignment: Tensor) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            videos=np.stack([to_frames(clip).numpy() for clip in clips]),
            labels=np.array([s.label for s in chunk], np.int64),
            assignment=assignment.cpu().numpy(),
            numbers=np.array([s.number for s in chunk], np.int64),
        )


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1))
