"""Stage 2 from settings: the table is the same whoever makes it, and whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evatok.core.errors import EvatokError
from evatok.workflows.search import Pace, SearchConfig, _done, run_search, search_config
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.search.table import read_table
from video.writing import write_video


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a search over five tiny videos; JSON-able."""
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        frames = torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, crf=8)
    former = QFormerConfig(width=16, layers=1, heads=2)
    torch.manual_seed(0)
    VideoTokenizer(
        TokenizerConfig(
            levels=(1, 4), num_frames=8, size=16, encoder=former, decoder=former, codebook_size=8
        )
    ).save_pretrained(tmp_path / "model")
    return {
        "data": {
            "sources": [{"kind": "folder", "root": str(tmp_path / "videos")}],
            "num_frames": 8,
            "size": 16,
            "cache_dir": str(tmp_path / "cache"),
        },
        "model": str(tmp_path / "model"),
        "clips": 6,
        "batch_size": 2,
    }


def test_processes_share_the_work_and_change_nothing(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    for processes in (1, 2):
        config = SearchConfig.model_validate(settings | {"processes": processes})
        result = search_config(config, tmp_path / str(processes), lambda *row: told.append(row))
        assert result["train"]["clips"] == 6 and result["test"]["clips"] == 5
        assert told[-1] == ("test", 5, 5)
    one, two = (sorted((tmp_path / n).glob("*/*.parquet")) for n in "12")
    assert len(one) == 6 and [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    absent = SearchConfig.model_validate(settings | {"model": str(tmp_path / "nothing")})
    with pytest.raises(FileNotFoundError, match="train the proxy first"):
        search_config(absent, tmp_path / "x")


class Ending:
    """A process of a search that ends with a status while the first one tells how far it is."""

    status: int | None = None

    def __init__(self, **given: Any) -> None:
        self.sentinel, self.exitcode = 0, None

    def is_alive(self) -> bool:
        self.exitcode = type(self).status
        return self.exitcode is None

    def start(self) -> None:
        """Do nothing; likewise below."""

    terminate = join = start


@pytest.mark.parametrize(
    ("status", "told"),
    [(-9, "a process of the search ended with status -9"), (0, "lacks 3 shards of the search")],
)
def test_a_search_that_is_not_complete_says_so(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    told: str,
) -> None:
    context = SimpleNamespace(Process=Ending, Pipe=Pipe)
    monkeypatch.setattr("evatok.workflows.search.get_context", lambda method: context)
    monkeypatch.setattr("evatok.workflows.search.wait", lambda sentinels, timeout: [])
    monkeypatch.setattr(Ending, "status", None)
    config = SearchConfig.model_validate(settings | {"processes": 2})
    with pytest.raises(EvatokError, match=told):
        search_config(config, tmp_path / "out", lambda *row: setattr(Ending, "status", status))


def test_some_candidates_of_training_clips(settings: dict[str, Any], tmp_path: Path) -> None:
    """Processes share them as they do all; held-out clips are searched for all."""
    for processes in (1, 2):
        given = settings | {"processes": processes, "candidates": 2}
        result = search_config(SearchConfig.model_validate(given), tmp_path / str(processes))
        assert result["candidates"] == 2
    one, two = (sorted((tmp_path / n).glob("*/*.parquet")) for n in "12")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    assert read_table(tmp_path / "1" / "train").measures["mse"].isnan().sum() == 6 * 2
    assert read_table(tmp_path / "1" / "test", whole=True).measures["mse"].shape == (5, 4)
    with pytest.raises(ValueError, match="candidates: 5 is more than the 4 of this tokenizer"):
        search_config(SearchConfig.model_validate(settings | {"candidates": 5}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_shards_that_are_being_written_do_not_count(tmp_path: Path) -> None:
    pq.write_table(pa.table({"clip": [1, 2, 3]}), tmp_path / "table-0.parquet")
    (tmp_path / ".table-1.partial.parquet").touch()
    assert _done(tmp_path) == 3


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_ten_kills_change_no_row(settings: dict[str, Any], tmp_path: Path, root: Path) -> None:
    """Four processes, killed in turn at random moments: the undisturbed table, byte for byte."""
    config = SearchConfig.model_validate(settings | {"clips": 600})
    search_config(config, tmp_path / "whole")
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"clips": 600}))
    driver = Path(__file__).parents[1] / "curation.py"
    done = subprocess.run(
        [sys.executable, driver, tmp_path / "killed", tmp_path / "settings.json", "10"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0 and done.stdout.strip() == "10", done.stderr
    whole = shards(tmp_path / "whole" / "train")
    assert len(whole) == 300 and shards(tmp_path / "killed" / "train") == whole
    table = read_table(tmp_path / "killed" / "train")
    assert len(set(table.batch_rows)) == len(table.names) == 600


def test_launched_processes_do_each_batch_once(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `torchrun --nproc-per-node 2`: no process waits for another."""
    config = SearchConfig.model_validate(settings)
    search_config(config, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, there in (("1", 1), ("0", 3)):
        monkeypatch.setenv("RANK", rank)
        search_config(config, tmp_path / "two")
        assert len(shards(tmp_path / "two" / "train")) == there
    assert shards(tmp_path / "one" / "train") == shards(tmp_path / "two" / "train")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="rank 2 is not one of 2 processes"):
        search_config(config, tmp_path / "two")


def test_damaged_shards_are_made_again(settings: dict[str, Any], tmp_path: Path) -> None:
    """Cut, empty, or with another byte in its numbers."""
    config = SearchConfig.model_validate(settings)
    search_config(config, tmp_path)
    whole = shards(tmp_path / "train")
    for number, (name, data) in enumerate(whole.items()):
        flipped = bytearray(data)
        flipped[data.index(b"#")] ^= 1  # in a clip's name
        (tmp_path / "train" / name).write_bytes([b"", data[:200], bytes(flipped)][number])
    search_config(config, tmp_path)
    assert len(whole) == 3 and shards(tmp_path / "train") == whole


def test_other_settings_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    search_config(SearchConfig.model_validate(settings), tmp_path / "table")
    more = SearchConfig.model_validate(settings | {"clips": 8, "method": "brute", "processes": 1})
    search_config(more, tmp_path / "table")  # these change no shard that is there
    for change, said in (({"seed": 3}, "seed: 0, now 3"), ({"precision": "bf16"}, "now bf16")):
        other = SearchConfig.model_validate(settings | change)
        with pytest.raises(ValueError, match=f"other settings .*{said}.*another folder"):
            search_config(other, tmp_path / "table")


def test_recorded_distances(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column for each; the reward takes it with a minus sign."""

    class Worst:
        checksum = "abc"

        def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x - y).abs().amax((1, 3, 4)).mean(1)

    monkeypatch.setattr("evatok.workflows.search.load_perceptual", lambda name: Worst())
    config = SearchConfig.model_validate(settings | {"quality": ["lpips"]})
    search_config(config, tmp_path / "table")
    table = read_table(tmp_path / "table" / "train")
    assert table.measures.keys() == {"mse", "lpips"} and table.quality("lpips").shape == (6, 4)
    assert (table.quality("lpips") < 0).all() and (table.quality("psnr") > 0).all()
    with pytest.raises(ValueError, match="not efficientnet-lite0: search with"):
        table.quality("efficientnet-lite0")
    with pytest.raises(ValueError, match="other settings"):
        search_config(SearchConfig.model_validate(settings), tmp_path / "table")


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate and time left, as soon as there are two points; shards that were there tell no rate."""
    clock = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr("evatok.workflows.search.time.monotonic", lambda: next(clock))
    told: list[str] = []
    pace = Pace(told.append)
    for done in (32, 32, 64, 96):
        pace("train", done, 128)
    assert told == [
        "train: 32 of 128 clips",
        "train: 32 of 128 clips",
        "train: 64 of 128 clips, 3.20 clips/s, 0:00:20 left",
        "train: 96 of 128 clips, 3.20 clips/s, 0:00:10 left",
    ]


def test_settings_file(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(json.dumps(settings))
    result = run_search(tmp_path / "search.yaml", ["clips=2"], tmp_path / "table")
    assert result["train"]["clips"] == 2 and result["candidates"] == 4
