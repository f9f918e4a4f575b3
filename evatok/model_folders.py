"""Folders of the parts of a model; imports no torch.

A model is a shipped name, a folder with a sub-folder for each part (as exported, or a run's folder
with PART/model), one part alone, or a repository of the Hugging Face hub with such a layout.
"""

from __future__ import annotations

import re
from pathlib import Path

from evaluation import encoders
from evatok.core.errors import MissingFileError
from evatok.core.loading.records import RecordError, read_object
from evatok.core.suggest import did_you_mean

SHIPPED = Path(__file__).resolve().parent / "weights"
SHIPPED_NETWORKS = Path(encoders.__file__).resolve().parent / "weights"
SHIPPED_FEATURES = SHIPPED_NETWORKS / "nano" / "features"  # of FVD[nano]
FOR_VIDEOS, FOR_PICTURES = "nano", "images"  # what commands take where no model is named
PARTS = ("features", "proxy", "router", "final", "generator")
PREFERENCE = "preference"  # a part that nothing else needs: a router with w_q as an input
TEXT = "text"  # beside the parts of a generator with text: no weights
WIDE = "final-wide"  # in a run's folder: the final tokenizer, trained on
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What a folder with a single part is, by the class that its config.json names.
CLASSES = {
    "VideoTokenizer": "final",
    "Router": "router",
    "GPT": "generator",
    "NanoNet": "features",
}
CLASS = "architectures"  # key of config.json: a list with the name
FETCHED = ("*.json", "*.safetensors", "*.model")  # files of a repository
COPY_ANEW = "copy the folder anew, or export the model again"


def part_folder(directory: Path, part: str) -> Path:
    """Return the folder of a part of a model, which may be absent."""
    places = [directory / part, directory / part / "model"]
    if part == "final":
        places.insert(1, directory / WIDE / "model")
    if part == "features" and directory.parent == SHIPPED:  # lies with the networks
        places.append(SHIPPED_NETWORKS / directory.name / "features")
    if single_part(directory) == part:
        places = [directory]
    return next(filter(_is_part, places), places[0])


def parts_of(directory: Path) -> list[str]:
    """Return the names of the parts that are in a folder."""
    return [name for name in (*PARTS, PREFERENCE) if _is_part(part_folder(directory, name))]


def single_part(directory: Path) -> str | None:
    """Return which part a folder is that holds one alone, as `push_to_hub` of a part leaves it."""
    if not _is_part(directory):
        return None
    try:
        found = read_object(directory / "config.json", COPY_ANEW).get(CLASS)
    except RecordError:  # reported where the part is read
        return None
    return CLASSES.get(str(found[0])) if isinstance(found, list) and found else None


def _is_part(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def locate(name_or_path: str | Path) -> Path:
    """Return the folder that holds the parts of a model.

    Args:
        name_or_path: the name of shipped models; a folder with a sub-folder for each part, which
            holds it or has it in `model/` (a run's); a folder of one part; or `owner/name` on the
            Hugging Face hub.

    Raises:
        FileNotFoundError: none of these, or the hub does not give it.
    """
    name = str(name_or_path)
    for directory in (SHIPPED / name, Path(name_or_path)):
        if parts_of(directory):
            return directory
    if HUB_ID.fullmatch(name) and not Path(name_or_path).exists():
        directory = _download(name)
        if parts_of(directory):
            return directory
    shipped = shipped_models()
    raise MissingFileError(
        f"no models {name!r}: give one of {shipped} or a folder that holds some of "
        f"{', '.join(PARTS)}{did_you_mean(name, shipped)}"
    )


def shipped_models() -> list[str]:
    """Return the names of the models that are shipped."""
    return sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())


def _download(name: str) -> Path:
    """Fetch the parts of a repository of the hub into its cache; return their folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except (OSError, ValueError) as error:  # offline, absent, forbidden
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise MissingFileError(
            f"{name} is no folder here, and the Hugging Face hub does not give it ({reason})"
        ) from error
