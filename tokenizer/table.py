"""The table of a search on disk: the quality of every candidate of every clip.

One Parquet shard a batch of clips, with each clip's name and place, and a column for each measure;
the shard's metadata names the model and the settings that made it. Shards are written to a
temporary name and renamed, so any number of processes may work on one table and be killed: what is
there is whole, and what is absent is made.

Shape letters: B batch, N clips, M = m^T candidates.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tokenizer.model import VideoTokenizer
from tokenizer.reward import Quality, psnr_of_mse
from tokenizer.search import Method, candidate_measures, model_hash
from tokenizer.tree import Measure

log = logging.getLogger(__name__)

Recorded = Literal["lpips", "efficientnet-lite0"]  # beside the mean squared error


@dataclass(frozen=True)
class SearchTable:
    """What a search has recorded.

    Attributes:
        measures: for each column (N, M) float32; "mse" is always one of them.
        names: of the clips.
        places: (batch, row) of each clip in that search.
    """

    measures: dict[str, Tensor]
    names: list[str]
    places: list[tuple[int, int]]

    def quality(self, name: Quality = "psnr") -> Tensor:
        """(N, M) float32, higher is better: PSNR in dB, or minus a perceptual distance.

        Raises:
            ValueError: the search did not record it.
        """
        if name == "psnr":
            return psnr_of_mse(self.measures["mse"])
        if name not in self.measures:
            raise ValueError(
                f"the table has {', '.join(self.measures)}, not {name}: "
                f"search with `quality: [{name}]` into another folder"
            )
        return -self.measures[name]


def curate(
    model: VideoTokenizer,
    batch: Callable[[int], tuple[Tensor, list[str]]],
    num_batches: int,
    directory: Path,
    *,
    measures: Mapping[str, Measure] | None = None,
    settings: Mapping[str, Any] | None = None,
    method: Method = "tree",
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
        measures: recorded beside "mse", by name; see `tokenizer.tree.Measure`.
        settings: JSON-able, whatever else decides the numbers in a shard.
        method: see `candidate_errors`.
        autocast: run the model in bf16.
        rank: this process; it takes every `world`-th batch.
        world: number of processes.

    Yields:
        The number of clips done so far by this process, after each batch.

    Raises:
        ValueError: shards that are there were made otherwise.
    """
    directory.mkdir(parents=True, exist_ok=True)
    note = {
        "model": model_hash(model),
        "levels": str(list(model.levels.values)),
        "settings": json.dumps(settings or {}, sort_keys=True),
    }
    done = 0
    for number in range(rank, num_batches, world):
        path = directory / f"table-{number:05d}.parquet"
        if path.exists() and _is_whole(path):
            _check_origin(path, note)
            done += pq.read_metadata(path).num_rows
            yield done
            continue
        clips, names = batch(number)
        device = clips.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            found = candidate_measures(model, clips, measures or {}, method)
        _write_shard(path, number, names, found, note)
        done += len(names)
        yield done


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
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(pa.table(columns, metadata=note), partial, write_page_checksum=True)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _is_whole(path: Path) -> bool:
    """Whether a shard is as it was written; its pages carry checksums."""
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        log.warning("%s is damaged and is made again: %s", path, " ".join(str(error).split()))
        return False
    return True


def _check_origin(path: Path, note: Mapping[str, str]) -> None:
    """Refuse a shard of another model, or of other settings where it tells them."""
    written = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()}
    if written.get("model") != note["model"]:
        raise ValueError(
            f"{path} was made with model {written.get('model')}, not {note['model']}: "
            f"remove {path.parent} or search into another folder"
        )
    if "settings" not in written or written["settings"] == note["settings"]:
        return
    theirs, ours = json.loads(written["settings"]), json.loads(note["settings"])
    different = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
    said = "; ".join(f"{k}: {theirs.get(k)}, now {ours.get(k)}" for k in different)
    raise ValueError(f"{path} was made with other settings ({said}): search into another folder")


def read_table(directory: Path) -> SearchTable:
    """Read all shards, in order.

    Raises:
        FileNotFoundError: there is none.
        ValueError: they do not have the same columns.
    """
    paths = sorted(directory.glob("table-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no table in {directory}: run `evatok search` first")
    tables = [pq.read_table(path) for path in paths]
    for path, part in zip(paths, tables, strict=True):
        if part.column_names != tables[0].column_names:
            raise ValueError(f"{path} has {part.column_names}, not {tables[0].column_names}")
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in tables])
    measures = {}
    for name in table.column_names[3:]:
        flat = table[name].combine_chunks().flatten().to_numpy()
        measures[name] = torch.from_numpy(flat.copy()).view(table.num_rows, -1)
    places = list(zip(table["batch"].to_pylist(), table["row"].to_pylist(), strict=True))
    return SearchTable(measures, table["clip"].to_pylist(), places)


def check_clips(directory: Path, recorded: list[str], drawn: list[str]) -> None:
    """Refuse a table whose clips are not those that the settings draw: their names tell.

    Args:
        directory: of the table, for the message.
        recorded: names in the table.
        drawn: names of the clips that would be taken for them.

    Raises:
        ValueError: they differ.
    """
    wrong = next(
        (i for i, pair in enumerate(zip(recorded, drawn, strict=True)) if len(set(pair)) > 1), None
    )
    if wrong is not None:
        raise ValueError(
            f"{directory} is unfinished or of other settings: its clip {recorded[wrong]} would be "
            f"taken for {drawn[wrong]}; run `evatok search` to its end, or anew in another folder"
        )
