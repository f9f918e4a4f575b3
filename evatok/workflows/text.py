"""Text models: captions of clips and their subword pieces, a folder that `evatok text train` makes.

It holds text.model (`generator.text`) and captions.json, the thresholds that captions tell clips
by. A model learned from a file of captions has no thresholds: it cannot write captions of its own.
"""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from evatok.core.config import Config, load_config
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import atomic_file, atomic_folder
from evatok.core.loading.records import read_record
from evatok.core.paths import refuse_overwrite
from evatok.workflows.captions import Thresholds, captions, class_words, measure_clips
from generator.data.shards import Describe
from generator.text import MODEL_FILE, TextTokenizer, train_text_tokenizer
from video.dataset import ClipSampler, DataConfig

log = logging.getLogger(__name__)

CAPTIONS_FILE = "captions.json"


class TextConfig(Config):
    """text.yaml.

    Attributes:
        clips: training clips that are measured, and whose captions the pieces are learned from.
        vocabulary_size: most pieces, 256 of them bytes.
        captions: .csv with columns path and caption: the pieces are learned from these captions
            of the training videos instead.
    """

    stage: Literal["text"] = "text"
    data: DataConfig
    captions: Path | None = None
    clips: int = Field(default=2000, ge=3)
    vocabulary_size: int = Field(default=512, ge=1)
    batch_size: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)


class CaptionsFile(Config):
    """captions.json.

    Attributes:
        digest: of the model that lies beside it.
        thresholds: what clips are told by; None where captions came from a file.
    """

    format: Literal[1] = 1
    digest: str
    thresholds: Thresholds | None = None


class Captioner:
    """Writes captions of clips as pieces.

    Attributes:
        pieces: the text tokenizer.
        thresholds: what clips are told by; None where captions came from a file.
    """

    def __init__(self, pieces: TextTokenizer, thresholds: Thresholds | None) -> None:
        self.pieces, self.thresholds = pieces, thresholds

    @classmethod
    def load(cls, directory: Path) -> Captioner:
        """Text model of `evatok text train`.

        Raises:
            FileNotFoundError: nothing is there.
            EvatokError: the two files do not belong together.
        """
        path = directory / CAPTIONS_FILE
        pieces = TextTokenizer.load(directory)
        if not path.is_file():
            raise MissingFileError(f"{path} is missing: `evatok text train` makes it")
        about = read_record(CaptionsFile, path, "make it anew with `evatok text train`")
        if about.digest != pieces.digest:
            raise EvatokError(f"{path} belongs to another {MODEL_FILE} than lies beside it")
        return cls(pieces, about.thresholds)

    def needs_thresholds(self) -> Thresholds:
        """The thresholds.

        Raises:
            EvatokError: there are none.
        """
        if self.thresholds is None:
            raise EvatokError(
                "this text model was learned from a file of captions and has no thresholds to tell "
                "clips by; make one from settings: evatok text train configs/nano/text.yaml"
            )
        return self.thresholds

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Pieces of texts, the same in training and in sampling.

        Where captions are made of names of classes, these are put in words, as the captions have
        them. Captions from a file are taken as they are: "3D" and "iPhone" are words there.
        """
        if self.thresholds is not None:
            texts = [class_words(text) for text in texts]
        return [self.pieces.encode(text) for text in texts]

    def describe(self, class_names: Sequence[str], *seed: int) -> Describe:
        """For a `Writer` of tokens: pieces of the captions of a set of clips."""
        thresholds = self.needs_thresholds()

        def pieces(first: int, clips: Tensor, labels: Tensor, videos: Tensor) -> list[list[int]]:
            ranks = thresholds.ranks(*measure_clips(clips))
            return self.encode(captions(ranks, labels, class_names, seed, first))

        return pieces

    def look_up(self, files: Sequence[Path], ids: Sequence[str], max_pieces: int) -> Describe:
        """For a `Writer` of tokens: pieces of the captions that come with a set of videos.

        Args:
            files: .csv with columns `path` and `caption`.
            ids: of the videos, as `path` has them.
            max_pieces: longer captions are cut; how many is logged.

        Raises:
            EvatokError: a file without these columns, or a video without caption.
        """
        known = {path: text for file in files for path, text in _rows(file, "path", "caption")}
        missing = [video for video in ids if not known.get(video, "").strip()]
        if missing:
            raise EvatokError(
                f"{len(missing)} of {len(ids)} videos, {missing[0]} for one, have no caption in "
                f"{', '.join(map(str, files))}"
            )
        whole = self.encode([known[video] for video in ids])
        cut = sum(len(pieces) > max_pieces for pieces in whole)
        if cut:
            log.info("%d of %d captions are cut to %d pieces", cut, len(ids), max_pieces)

        def pieces(first: int, clips: Tensor, labels: Tensor, videos: Tensor) -> list[list[int]]:
            texts = [known[ids[int(video)]] for video in videos.tolist()]
            return [pieces[:max_pieces] for pieces in self.encode(texts)]

        return pieces


def run_text(source: Path, directory: Path, vocabulary_size: int | None = None) -> dict[str, Any]:
    """Learn from a settings file or from a file of captions; see `train_text`.

    Args:
        source: .yaml settings, .csv with a column `caption`, or any other file with a caption a
            line.
        directory: where to.
        vocabulary_size: instead of the settings' or 512.
    """
    refuse_overwrite([directory], [source])
    if source.suffix in (".yaml", ".yml"):
        changes = () if vocabulary_size is None else (f"vocabulary_size={vocabulary_size}",)
        return train_text(load_config(TextConfig, source, changes), directory)
    return save_text(read_captions(source), vocabulary_size or 512, None, directory)


def read_captions(path: Path) -> list[str]:
    """The captions in a file.

    Raises:
        FileNotFoundError: no such file.
        EvatokError: a .csv without a column `caption`, or no UTF-8.
    """
    if not path.is_file():
        raise MissingFileError(f"no file {path}: give settings (.yaml), a .csv or a text file")
    if path.suffix == ".csv":
        return [caption for (caption,) in _rows(path, "caption")]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvatokError(f"{path} is not UTF-8 text; give a caption a line") from error
    return text.splitlines()


def _rows(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """These columns of a .csv."""
    if not path.is_file():
        raise MissingFileError(f"no file {path} with captions")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in columns if column not in (rows.fieldnames or ())]
            if missing:
                raise EvatokError(f"{path} has no column {missing[0]!r}; it has {rows.fieldnames}")
            return [tuple(row[column] or "" for column in columns) for row in rows]
    except UnicodeDecodeError as error:
        raise EvatokError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise EvatokError(f"{path} is no table of comma-separated values ({error})") from error


def train_text(config: TextConfig, directory: Path) -> dict[str, Any]:
    """Measure training clips, write captions of them and learn pieces; see `save_text`."""
    sampler = ClipSampler(config.data, "train")
    if config.captions is not None:
        known = {path: caption for path, caption in _rows(config.captions, "path", "caption")}
        texts = [known.get(video, "") for cache in sampler.caches for video in cache.ids]
        return save_text(texts, config.vocabulary_size, None, directory)
    measured, labels = [], []
    for step in range(-(-config.clips // config.batch_size)):
        clips, batch_labels, _ = sampler.batch(step, config.batch_size, config.seed)
        measured.append(torch.stack(measure_clips(clips)))
        labels.append(batch_labels)
    brightness, motion = torch.cat(measured, 1)[:, : config.clips]
    thresholds = Thresholds.from_values(brightness, motion)
    texts = captions(
        thresholds.ranks(brightness, motion),
        torch.cat(labels)[: config.clips],
        sampler.class_names,
        (config.seed,),
    )
    return save_text(texts, config.vocabulary_size, thresholds, directory)


def save_text(
    texts: Sequence[str], vocabulary_size: int, thresholds: Thresholds | None, directory: Path
) -> dict[str, Any]:
    """Learn pieces from captions and write the folder, whole or not at all.

    Returns:
        JSON-able: folder, counts of captions and pieces, pieces of the longest caption, thresholds,
        some captions.

    Raises:
        EvatokError: the folder holds something else; what tokens were made with is not replaced.
    """
    pieces = train_text_tokenizer(texts, vocabulary_size)
    about = CaptionsFile(digest=pieces.digest, thresholds=thresholds)
    if directory.exists() and any(directory.iterdir()):
        old = directory / CAPTIONS_FILE
        if not old.is_file() or old.read_text(encoding="utf-8") != _json(about):
            raise EvatokError(f"{directory} holds something else; delete it or name another folder")
    else:
        with atomic_folder(directory) as partial:
            pieces.save(partial)
            (partial / CAPTIONS_FILE).write_text(_json(about), encoding="utf-8")
    return {
        "folder": str(directory),
        "captions": len(texts),
        "pieces": len(pieces),
        "longest": max(len(pieces.encode(text)) for text in texts),
        "digest": pieces.digest,
        "thresholds": None if thresholds is None else thresholds.model_dump(mode="json"),
        "examples": list(dict.fromkeys(texts))[:5],
    }


def copy_text(source: Path, target: Path) -> int:
    """Put the text part of one folder into another, and return its bytes."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, CAPTIONS_FILE):
        with atomic_file(target / name) as partial:
            shutil.copyfile(source / name, partial)
    return sum((target / name).stat().st_size for name in (MODEL_FILE, CAPTIONS_FILE))


def _json(about: CaptionsFile) -> str:
    return about.model_dump_json(indent=1) + "\n"
