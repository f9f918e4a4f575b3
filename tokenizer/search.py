"""Every candidate of every clip: by the exact prefix tree or brute force; the table on disk.

The tree is `tokenizer.tree`; brute force is kept as its slow twin.

Shape letters: B batch, T blocks, M = m^T candidates.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tokenizer.model import VideoTokenizer
from tokenizer.tree import Measure, PrefixTree

log = logging.getLogger(__name__)

Method = Literal["tree", "brute"]


@torch.no_grad()
def candidate_errors(model: VideoTokenizer, clips: Tensor, method: Method = "tree") -> Tensor:
    """Mean squared error of every candidate assignment.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float32 in [−1, 1], whole clips.
        method: "tree" or "brute"; equal up to rounding.

    Returns:
        (B, M) float32, error of clamped reconstructions, values in [−1, 1].
    """
    return candidate_measures(model, clips, {}, method)["mse"]


@torch.no_grad()
def candidate_measures(
    model: VideoTokenizer,
    clips: Tensor,
    measures: Mapping[str, Measure],
    method: Method = "tree",
) -> dict[str, Tensor]:
    """As `candidate_errors`, with further measures of quality that are means over frames.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float32 in [−1, 1], whole clips.
        measures: such as LPIPS, by name.
        method: "tree" or "brute"; equal up to rounding.

    Returns:
        (B, M) float32 for "mse" and each of the measures.
    """
    if method == "tree":
        return PrefixTree(model, clips, measures).measure()
    out: dict[str, list[Tensor]] = {name: [] for name in ("mse", *measures)}
    for candidate in model.levels.candidates(clips.shape[2] // model.config.patch[0]):
        result = model(clips, candidate.expand(len(clips), -1).to(clips.device))
        made = result.clips.float().clamp(-1, 1)
        out["mse"].append((made - clips).square().mean((1, 2, 3, 4)))
        for name, measure in measures.items():
            out[name].append(measure(made, clips).float())
    return {name: torch.stack(columns, 1) for name, columns in out.items()}


def model_hash(model: torch.nn.Module) -> str:
    """First 16 hex digits of the sha256 over all weights, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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


def curate(
    model: VideoTokenizer,
    batch: Callable[[int], tuple[Tensor, list[str]]],
    num_batches: int,
    directory: Path,
    *,
    method: Method = "tree",
    autocast: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Iterator[int]:
    """Write the table of all candidates, one Parquet shard for each batch; resumable.

    A shard is written to a temporary name and renamed: it is there whole or not at all. A killed
    run skips the shards that exist. Shards of another model are refused.

    Args:
        model: in eval mode.
        batch: number of a batch → clips (B, 3, F, H, W) and their names; a pure function.
        num_batches: how many.
        directory: where `table-00000.parquet` … go.
        method: see `candidate_errors`.
        autocast: run the model in bf16.
        rank: this process; it takes every `world`-th batch.
        world: number of processes.

    Yields:
        The number of clips done so far by this process, after each batch.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fingerprint = model_hash(model)
    done = 0
    for number in range(rank, num_batches, world):
        path = directory / f"table-{number:05d}.parquet"
        if path.exists():
            _check_model(path, fingerprint)
            done += pq.read_metadata(path).num_rows
            yield done
            continue
        clips, names = batch(number)
        device = clips.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            errors = candidate_errors(model, clips, method)
        table = pa.table(
            {
                "clip": names,
                "batch": pa.array([number] * len(names), pa.int32()),
                "row": pa.array(range(len(names)), pa.int32()),
                "mse": pa.FixedSizeListArray.from_arrays(
                    pa.array(errors.flatten().numpy()), errors.shape[1]
                ),
            },
            metadata={"model": fingerprint, "levels": str(list(model.levels.values))},
        )
        partial = path.with_suffix(".partial")
        pq.write_table(table, partial)
        partial.replace(path)
        done += len(names)
        yield done


def _check_model(path: Path, fingerprint: str) -> None:
    written = (pq.read_schema(path).metadata or {}).get(b"model", b"").decode()
    if written != fingerprint:
        raise ValueError(
            f"{path} was made with model {written}, not {fingerprint}: "
            f"remove {path.parent} or search into another folder"
        )


def read_table(directory: Path) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
    """Read all shards.

    Returns:
        (N, M) float32 errors, clip names, and (batch, row) of each clip, in shard order.
    """
    paths = sorted(directory.glob("table-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no table in {directory}: run `evatok search` first")
    tables = [pq.read_table(path) for path in paths]
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    flat = table["mse"].combine_chunks().flatten().to_numpy()
    errors = torch.from_numpy(flat.copy()).view(table.num_rows, -1)
    places = list(zip(table["batch"].to_pylist(), table["row"].to_pylist(), strict=True))
    return errors, table["clip"].to_pylist(), places
