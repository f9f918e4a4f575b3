"""The table of a search on disk: the quality of every candidate of every clip.

One Parquet shard a batch of clips, with each clip's name and place, and a column for each measure,
NaN for candidates that were not searched; the shard's metadata names the model and the settings
that made it. Shards are written to a
temporary name and renamed, so any number of processes may work on one table and be killed: what is
there is whole, and what is absent is made.

Shape letters: B batch, N clips, M = m^T candidates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evatok.core.compute.precision import bfloat16_autocast
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.extras import extra
from evatok.core.files import atomic_file
from evatok.core.loading.records import parse_json
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import (
    Method,
    candidate_measures,
    drawn_candidates,
    model_hash,
    motion_weights,
)
from tokenizer.search.reward import Quality, psnr_of_mse
from tokenizer.search.tree import Measure

with extra("train"):
    import pyarrow as pa
    import pyarrow.parquet as pq

# Beside the mean squared error; moving_mse is that where a clip moves, see `motion_weights`.
Recorded = Literal["moving_mse", "lpips", "efficientnet-lite0"]


log = logging.getLogger(__name__)

PLACE = {"clip": pa.string(), "batch": pa.int32(), "row": pa.int32()}  # columns before measures
REMEDY = "remove it and run `evatok search` again, which writes what is missing"


class ShardError(EvatokError):
    """A shard that is there and cannot be used."""


@dataclass(frozen=True)
class SearchTable:
    """Recorded measures of a search.

    Attributes:
        measures: for each column (N, M) float32; "mse" is always one of them. NaN for candidates
            that a clip was not searched for, the same ones in every column.
        names: of the clips.
        batch_rows: (batch, row) of each clip in that search.
        levels: of the model that was searched, as the shards tell them; "" where they do not.
    """

    measures: dict[str, Tensor]
    names: list[str]
    batch_rows: list[tuple[int, int]]
    levels: str = ""

    def check_levels(self, levels: Sequence[int], directory: Path) -> None:
        """Refuse a table whose candidates are of other levels, as many as they may be."""
        if self.levels not in ("", str(list(levels))):
            raise EvatokError(
                f"{directory} was searched with levels {self.levels}, not {list(levels)}"
            )

    def quality(self, name: Quality = "psnr") -> Tensor:
        """(N, M) float32, higher is better: a PSNR in dB, or minus a perceptual distance.

        Raises:
            EvatokError: the search did not record it.
        """
        if name == "psnr":
            return psnr_of_mse(self.measures["mse"])
        column = "moving_mse" if name == "moving_psnr" else name
        if column not in self.measures:
            raise EvatokError(
                f"the table has {', '.join(self.measures)}, not {column}: "
                f"search with `quality: [{column}]` into another folder"
            )
        if name == "moving_psnr":
            return psnr_of_mse(self.measures[column])
        return -self.measures[column]


def curate(
    model: VideoTokenizer,
    batch: Callable[[int], tuple[Tensor, list[str]]],
    num_batches: int,
    directory: Path,
    *,
    measures: Mapping[str, Measure] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_motion: bool = False,
    method: Method = "tree",
    candidates: int | None = None,
    seed: int = 0,
    autocast: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Iterator[int]:
    """Write the table of all candidates, one shard for each batch; resumable.

    A killed run skips the shards that exist. Shards of another model, or made with other settings,
    are refused.

    Args:
        model: in eval mode.
        batch: number of a batch → clips (B, 3, F, H, W) and their names; a pure function.
        num_batches: how many.
        directory: where `table-00000.parquet` … go.
        measures: recorded beside "mse", by name; see `tokenizer.search.tree.Measure`.
        with_motion: record "moving_mse" too.
        settings: JSON-able, whatever else decides the numbers in a shard.
        method: see `candidate_errors`.
        candidates: how many each batch is searched for, drawn anew (`drawn_candidates`); all if
            None.
        seed: of that draw.
        autocast: run the model in bf16, where that is not slower.
        rank: this process; it takes every `world`-th batch.
        world: number of processes.

    Yields:
        The number of clips done so far by this process, after each batch.

    Raises:
        EvatokError: shards that are there were made otherwise.
    """
    directory.mkdir(parents=True, exist_ok=True)
    decided = dict(settings or {})
    if candidates is not None:
        decided["candidates"] = candidates
    note = {
        "model": model_hash(model),
        "levels": str(list(model.levels.values)),
        "settings": json.dumps(decided, sort_keys=True),
    }
    total = model.levels.num_candidates(model.num_blocks)
    done = 0
    for number in range(rank, num_batches, world):
        path = shard_path(directory, number)
        shard = _resumed(path) if path.exists() else None
        if shard is not None:
            _check_origin(path, shard, note)
            done += shard.num_rows
            yield done
            continue
        clips, names = batch(number)
        with bfloat16_autocast(clips.device.type, autocast):
            weights = {"moving_mse": motion_weights(clips)} if with_motion else {}
            only = drawn_candidates(total, candidates, seed, number)
            found = candidate_measures(model, clips, measures or {}, method, weights, only)
        _write_shard(path, number, names, found, note)
        done += len(names)
        yield done


def shard_path(directory: Path, number: int) -> Path:
    """Return where the shard of a batch is."""
    return directory / f"table-{number:05d}.parquet"


def _write_shard(
    path: Path, number: int, names: list[str], found: Mapping[str, Tensor], note: dict[str, str]
) -> None:
    columns: dict[str, Any] = {
        "clip": names,
        "batch": pa.array([number] * len(names), pa.int32()),
        "row": pa.array(range(len(names)), pa.int32()),
    }
    for name, table in found.items():
        flat = pa.array(table.contiguous().flatten().cpu().numpy())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, table.shape[1])
    # Two processes that were told to do the same batch write the same bytes to names of their own.
    with atomic_file(path) as partial:
        pq.write_table(pa.table(columns, metadata=note), partial, write_page_checksum=True)


def _read_shard(path: Path) -> pa.Table:
    """Read a shard whole.

    Raises:
        ShardError: damaged, or no shard of a search.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ShardError(f"{path} is damaged ({reason}): {REMEDY}") from None
    types = {name: table.schema.field(name).type for name in table.column_names}
    measures = table.column_names[len(PLACE) :]
    fits = (
        [*types.items()][: len(PLACE)] == [*PLACE.items()]
        and len(types) == len(table.column_names)
        and "mse" in measures
        and all(pa.types.is_fixed_size_list(types[name]) for name in measures)
        and len({types[name] for name in measures}) == 1
        and types["mse"].value_type == pa.float32()
        and table.num_rows
    )
    if not fits:
        raise ShardError(f"{path} is no table of a search: {REMEDY}")
    unsearched: np.ndarray[Any, np.dtype[np.bool_]] | None = None  # (M,)
    for name in table.column_names:
        flat = table[name].combine_chunks()
        values = flat.flatten() if name in measures else flat
        if flat.null_count or values.null_count:
            raise ShardError(f"{path}: {name} has gaps: {REMEDY}")
        if name in measures:
            numbers = values.to_numpy().reshape(table.num_rows, -1)
            if unsearched is None:
                unsearched = _unsearched(path, table, numbers)
            if not (np.isfinite(numbers) != unsearched).all():
                raise ShardError(f"{path}: {name} has values that are not finite: {REMEDY}")
    return table


def _unsearched(
    path: Path, shard: pa.Table, numbers: np.ndarray[Any, np.dtype[np.float32]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Candidates (M,) that a shard may lack: as many as its settings say, the same for all rows."""
    missing = np.asarray(np.isnan(numbers).all(0))
    wanted = _settings(path, shard).get("candidates")
    return missing if (~missing).sum() == wanted else np.zeros_like(missing)


def _settings(path: Path, shard: pa.Table) -> dict[str, Any]:
    """What made a shard, as far as it tells."""
    metadata = shard.schema.metadata or {}
    written = metadata.get(b"settings", b"{}").decode(errors="replace")
    settings = parse_json(written, f"{path}: settings", REMEDY)
    if not isinstance(settings, dict):
        raise ShardError(f"{path}: its settings are no mapping: {REMEDY}")
    return settings


def _resumed(path: Path) -> pa.Table | None:
    """A shard that is there; None, with a warning, if it is damaged and to be written anew."""
    try:
        return _read_shard(path)
    except ShardError as error:
        log.warning("%s; this search writes it anew", error)
        return None


def _check_origin(path: Path, shard: pa.Table, note: Mapping[str, str]) -> None:
    """Refuse a shard of another model, or of other settings where it tells them."""
    metadata = shard.schema.metadata or {}
    written = {k.decode(): v.decode(errors="replace") for k, v in metadata.items()}
    if written.get("model") != note["model"]:
        raise EvatokError(
            f"{path} was made with model {written.get('model')}, not {note['model']}: "
            f"remove {path.parent} or search into another folder"
        )
    if "settings" not in written or written["settings"] == note["settings"]:
        return
    theirs, ours = _settings(path, shard), json.loads(note["settings"])
    different = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
    said = "; ".join(f"{k}: {theirs.get(k)}, now {ours.get(k)}" for k in different)
    raise EvatokError(f"{path} was made with other settings ({said}): search into another folder")


def read_table(directory: Path, whole: bool = False) -> SearchTable:
    """Read all shards, in order.

    Args:
        directory: of one split of a search.
        whole: every candidate of every clip is needed.

    Raises:
        FileNotFoundError: there is none.
        EvatokError: one is damaged, they do not have the same columns, or candidates are missing
            where all are needed.
    """
    paths = sorted(directory.glob("table-*.parquet"))
    if not paths:
        raise MissingFileError(f"no table in {directory}: run `evatok search` first")
    tables = [_read_shard(path) for path in paths]
    for path, part in zip(paths, tables, strict=True):
        if not part.schema.equals(tables[0].schema):
            raise EvatokError(
                f"{path} has other columns than {paths[0]}: they are of two searches; remove "
                f"{directory} and run `evatok search` again"
            )
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in tables])
    measures = {}
    for name in table.column_names[3:]:
        flat = table[name].combine_chunks().flatten().to_numpy()
        measures[name] = torch.from_numpy(flat.copy()).view(table.num_rows, -1)
    if whole and measures["mse"].isnan().any():
        raise EvatokError(
            f"{directory} was searched with `candidates`; all of them are needed here: search into "
            "another folder without"
        )
    batch_rows = list(zip(table["batch"].to_pylist(), table["row"].to_pylist(), strict=True))
    told = (tables[0].schema.metadata or {}).get(b"levels", b"").decode(errors="replace")
    return SearchTable(measures, table["clip"].to_pylist(), batch_rows, told)


def check_clips(directory: Path, recorded: list[str], drawn: list[str]) -> None:
    """Refuse a table whose clips are not those that the settings draw: their names tell.

    Args:
        directory: of the table, for the message.
        recorded: names in the table.
        drawn: names of the clips that would be taken for them.

    Raises:
        EvatokError: they differ.
    """
    pairs = zip_longest(recorded, drawn, fillvalue="none")
    wrong = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if wrong is not None:
        raise EvatokError(
            f"{directory} is unfinished or of other settings: its clip {wrong[0]} would be taken "
            f"for {wrong[1]}; run `evatok search` to its end, or anew in another folder"
        )
