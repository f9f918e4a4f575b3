"""The table of a search on disk: what is damaged is named, or searched again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.model import VideoTokenizer
from tokenizer.search.table import ShardError, check_clips, curate, read_table


def shard(path: Path, **changes: object) -> None:
    """A shard of two clips and three candidates."""
    values = pa.array(np.arange(6, dtype=np.float32) + 1)
    columns: dict[str, object] = {
        "clip": ["a", "b"],
        "batch": pa.array([0, 0], pa.int32()),
        "row": pa.array([0, 1], pa.int32()),
        "mse": pa.FixedSizeListArray.from_arrays(values, 3),
    }
    columns |= changes
    kept = {name: column for name, column in columns.items() if column is not None}
    pq.write_table(pa.table(kept), path, write_page_checksum=True)


def lists(*values: float | None) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), 3)


def flip(path: Path) -> None:
    """One bit of the column of numbers."""
    content = bytearray(path.read_bytes())
    place = content.index(np.float32(2).tobytes() + np.float32(3).tobytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "junk": lambda p: p.write_bytes(b"PAR1 no table PAR1"),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-20]),
    "without its middle": lambda p: p.write_bytes(p.read_bytes()[:50] + p.read_bytes()[90:]),
    "a flipped bit": flip,
    "no measure": lambda p: shard(p, mse=None),
    "another measure only": lambda p: shard(p, mse=None, lpips=lists(1, 2, 3, 4, 5, 6)),
    "no clips": lambda p: shard(p, clip=None),
    "numbers for names": lambda p: shard(p, clip=[1, 2]),
    "plain numbers": lambda p: shard(p, mse=[1.0, 2.0]),
    "a gap": lambda p: shard(p, mse=lists(1, 2, 3, 4, None, 6)),
    "a nameless clip": lambda p: shard(p, clip=["a", None]),
    "NaN": lambda p: shard(p, mse=lists(1, 2, float("nan"), 4, 5, 6)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table-00000.parquet"
    shard(path)
    assert read_table(tmp_path).measures["mse"].tolist() == [[1, 2, 3], [4, 5, 6]]
    DAMAGE[name](path)
    with pytest.raises(ShardError) as caught:
        read_table(tmp_path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "run `evatok search` again" in message


def test_a_table_of_other_levels(model: VideoTokenizer, clips: Tensor, tmp_path: Path) -> None:
    """As many candidates as another router has: only the levels tell."""
    list(curate(model, lambda number: (clips[:1], ["clip"]), 1, tmp_path))
    table = read_table(tmp_path)
    levels = model.levels.values
    table.check_levels(levels, tmp_path)
    with pytest.raises(ValueError, match=r"was searched with levels \[.*\], not \["):
        table.check_levels([level + 1 for level in levels], tmp_path)


def test_shards_of_two_searches(tmp_path: Path) -> None:
    shard(tmp_path / "table-00000.parquet")
    shard(tmp_path / "table-00001.parquet", lpips=lists(1, 2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match=r"00001\.parquet has other columns than .*00000"):
        read_table(tmp_path)


def test_a_damaged_shard_is_searched_again(
    model: VideoTokenizer, clips: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def batch(number: int) -> tuple[Tensor, list[str]]:
        return clips[number : number + 1], [f"clip {number}"]

    assert list(curate(model, batch, 2, tmp_path)) == [1, 2]
    whole = read_table(tmp_path)
    path = tmp_path / "table-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert list(curate(model, batch, 2, tmp_path)) == [1, 2]
    assert "00001.parquet is damaged" in caplog.text and "writes it anew" in caplog.text
    again = read_table(tmp_path)
    assert torch.equal(again.measures["mse"], whole.measures["mse"])


def test_a_table_of_some_candidates(model: VideoTokenizer, clips: Tensor, tmp_path: Path) -> None:
    """Each batch has its own; what is measured is as in the whole table; another number is told."""

    def batch(number: int) -> tuple[Tensor, list[str]]:
        return clips[number : number + 1], [f"clip {number}"]

    some, every = tmp_path / "some", tmp_path / "every"
    assert list(curate(model, batch, 3, some, candidates=9, seed=1)) == [1, 2, 3]
    assert list(curate(model, batch, 3, every)) == [1, 2, 3]
    table, whole = read_table(some).measures["mse"], read_table(every, whole=True).measures["mse"]
    searched = ~table.isnan()
    assert searched.sum(1).tolist() == [9, 9, 9] and searched.any(0).sum() > 9
    torch.testing.assert_close(table[searched], whole[searched], rtol=1e-4, atol=0)
    with pytest.raises(EvatokError, match=r"some was searched with `candidates`; all of them"):
        read_table(some, whole=True)
    with pytest.raises(EvatokError, match=r"other settings \(candidates: 9, now 8\)"):
        list(curate(model, batch, 3, some, candidates=8, seed=1))
    with pytest.raises(EvatokError, match=r"other settings \(candidates: 9, now None\)"):
        list(curate(model, batch, 3, some))


@pytest.mark.parametrize("drawn", [[], ["a#0"], ["a#0", "b#4", "c#1"]])
def test_another_number_of_clips_is_told(drawn: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unfinished or of other settings: its clip"):
        check_clips(tmp_path, ["a#0", "b#4"], drawn)
