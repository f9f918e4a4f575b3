"""Checkpoints which are whole or not there.

    run_dir/checkpoints/step-00000500/
        model.safetensors      weights and buffers
        ema.safetensors        averaged weights, where averaging is on
        optimizer.safetensors  "parameter::key" → tensor
        adversary.safetensors, adversary_optimizer.safetensors   where there is a second trainee
        state.json             step, format, config, metrics, git hash, SHA-256 of the files above

A checkpoint is written under a hidden name, forced to disk, and renamed: a process killed at any
moment leaves the hidden folder behind and nothing else. Reading needs nothing from this repository.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.files import naming
from evatok.core.loading.records import RecordError, first_mistake, read_object

FORMAT = 1
FOLDER = "checkpoints"
TENSORS = ("model", "ema", "optimizer", "adversary", "adversary_optimizer")  # a file each
NAME = re.compile(r"step-(\d{8,})")
REMEDY = "remove its folder to go on from the one before"

logger = logging.getLogger(__name__)


class CheckpointError(EvatokError):
    """A checkpoint that is there and cannot be used."""


class State(BaseModel):
    """Required keys of state.json; the loop adds more.

    Attributes:
        format: of checkpoints.
        step: optimiser steps taken.
        files: SHA-256 of each file beside it.
        seconds: of training until then.
        metrics: of the last validation.
        sums: totals and counts of the terms that are logged next.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    format: int
    step: int = Field(ge=0)
    files: dict[str, str]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    metrics: dict[str, Any]
    sums: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        step: optimiser steps taken.
        model: state dict of the trained weights and buffers.
        ema: state dict of the averaged weights, empty where averaging is off.
        optimizer: "parameter::key" → tensor, see `training.optimization.optimizer.state_tensors`.
        adversary: state dict of the second trainee, empty where there is none.
        adversary_optimizer: likewise, as `optimizer`.
        state: JSON values: config, metrics, git hash and what the loop adds.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    adversary: dict[str, Tensor] = field(default_factory=dict)
    adversary_optimizer: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def save(run_dir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove later (damaged) ones and all but the newest `keep`.

    Returns:
        Its folder.
    """
    root = run_dir / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    for rubbish in root.glob(".*.partial"):  # of a run that was killed while it saved or removed
        shutil.rmtree(rubbish)
    final = root / f"step-{checkpoint.step:08d}"
    partial = root / f".{final.name}.partial"
    partial.mkdir()
    sums = {}
    for name in TENSORS:
        tensors = getattr(checkpoint, name)
        if tensors:
            file = partial / f"{name}.safetensors"
            with naming(file):
                save_file(_independent(tensors), file)
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes private files
            _sync(file)
            sums[file.name] = _sha256(file)
    nothing = {"seconds": 0.0, "metrics": {}, "sums": {}}
    written = {"format": FORMAT, "step": checkpoint.step, "files": sums}
    state = nothing | checkpoint.state | written
    with naming(partial / "state.json"):
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    _sync(partial / "state.json")
    _sync(partial)
    if final.exists():  # a damaged one of the same step
        _remove(final)
    os.rename(partial, final)
    _sync(root)
    # Later ones are damaged (`latest` passed them over): they must not count as the newest.
    for late in (path for path in _folders(run_dir) if _step(path) > checkpoint.step):
        _remove(late)
    for old in _folders(run_dir)[:-keep]:
        _remove(old)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder, all tensors on the CPU.

    Raises:
        CheckpointError: a file is missing or not as it was written, or the format is not ours.
    """
    state = _verified(path)
    read = {
        name: load_file(path / f"{name}.safetensors")
        if f"{name}.safetensors" in state["files"]
        else {}
        for name in TENSORS
    }
    return Checkpoint(step=state["step"], state=state, **read)


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, None where there is none.

    Damaged and unfinished ones are passed over with a warning each.
    """
    for rubbish in sorted((run_dir / FOLDER).glob(".*.partial")):
        logger.warning("%s: unfinished checkpoint, ignored", rubbish)
    for folder in reversed(_folders(run_dir)):
        try:
            _verified(folder)
        except CheckpointError as error:
            logger.warning("%s; ignored", error)
        else:
            return folder
    return None


def _folders(run_dir: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [p for p in (run_dir / FOLDER).glob("step-*") if NAME.fullmatch(p.name)]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _verified(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint whose files are all as they were written."""
    try:
        state = read_object(path / "state.json", REMEDY)
        version = state.get("format")
        if isinstance(version, int) and version != FORMAT:
            raise CheckpointError(
                f"{path}: checkpoint of format {version}, this code reads {FORMAT}"
            )
        known = State.model_validate_json(json.dumps(state))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint: state.json: {first_mistake(error)}: {REMEDY}"
        ) from None
    except (OSError, RecordError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error}") from None
    if known.step != _step(path):
        raise CheckpointError(f"{path}: damaged checkpoint: state.json is of step {known.step}")
    strange = sorted(known.files.keys() - {f"{name}.safetensors" for name in TENSORS})
    if strange or "model.safetensors" not in known.files:
        named = strange[0] if strange else "no model.safetensors"
        raise CheckpointError(f"{path}: damaged checkpoint: state.json names {named}: {REMEDY}")
    for name, expected in known.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: damaged checkpoint: {name} is missing")
        if _sha256(file) != expected:
            raise CheckpointError(f"{path}: damaged checkpoint: {name} has another SHA-256")
    return state


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, one storage each: safetensors refuses tied weights as they are."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen or not whole else tensor
        seen.add(pointer)
    return out


def _remove(folder: Path) -> None:
    """Take a checkpoint away in one step, then delete its files."""
    hidden = folder.with_name(f".{folder.name}.old.partial")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or the entries of a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
