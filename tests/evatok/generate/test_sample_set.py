"""Sample sets: the same files from any number of processes, however often they are killed."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evatok.generate.sample_set as sample_set_module
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import RankInfo
from evatok.generate.sample_set import sample_set
from evatok.hub import Models
from generator.budget import BudgetConfig
from generator.inference.requests import SamplingConfig
from video.reading import read_frames

GUIDED = SamplingConfig(guidance=2.0)
ROOT = Path(__file__).resolve().parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(toy_dir: Path, output: Path, rank: int, world: int, *more: str) -> subprocess.Popen[Any]:
    """`evatok sample` as a launcher would start it."""
    words = ["sample", "-o", str(output), "--model", str(toy_dir), "-n", "5", "--chunk", "2"]
    environment = {"RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "evatok", *words, *more, "--plain", "--json"],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=output.parent,
    )


def test_files_records_and_manifest(toy: Models, tmp_path: Path) -> None:
    result = sample_set(toy, ["right"], 3, 0, GUIDED, tmp_path / "out")
    assert result["num_samples"] == 3 and result["guidance"] == 2.0
    for row in result["samples"]:
        assert row["class"] == "Right" and row["tokens"] == sum(row["assignment"])
        assert len(read_frames(row["file"])) == 16
    assert len({row["file"] for row in result["samples"]}) == 3
    manifest = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [s["file"] for s in manifest["samples"]] == [
        Path(row["file"]).name for row in result["samples"]
    ]
    assert manifest["command"]["settings"]["guidance"] == 2.0
    plain = sample_set(toy, ["Right"], 3, 0, GUIDED, tmp_path / "again", plain=True)
    assert [r["assignment"] for r in plain["samples"]] == [
        r["assignment"] for r in result["samples"]
    ]
    assert read_frames(plain["samples"][0]["file"]).shape == (16, 32, 32, 3)


def test_every_class_by_default(toy: Models, tmp_path: Path) -> None:
    result = sample_set(toy, (), 1, 0, GUIDED, tmp_path)
    assert [row["class"] for row in result["samples"]] == ["Left", "Right"]


@pytest.mark.parametrize("file_format", ["mp4", "npz"])
def test_any_number_of_processes_makes_the_same_files(
    toy: Models, tmp_path: Path, file_format: Any
) -> None:
    def run(folder: str, process: RankInfo | None = None) -> dict[str, Any]:
        return sample_set(
            toy, (), 5, 3, GUIDED, tmp_path / folder, format=file_format, chunk=3, process=process
        )

    whole = run("one")
    assert whole["num_samples"] == 10
    parts = [run("three", RankInfo(rank, 3)) for rank in (2, 0, 1)]
    assert sum(part["num_samples"] for part in parts) == 10
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    idle = run("one", RankInfo(7, 8))  # more processes than chunks
    assert idle["num_samples"] == 0 and idle["mean_tokens"] is None


def test_arrays_hold_the_clips(toy: Models, tmp_path: Path) -> None:
    sample_set(toy, (), 2, 0, GUIDED, tmp_path, format="npz", chunk=3)
    files = sorted(tmp_path.glob("*.npz"))
    assert [file.name for file in files] == ["samples-00000.npz", "samples-00001.npz"]
    arrays = [np.load(file, allow_pickle=False) for file in files]
    assert [a["videos"].shape for a in arrays] == [(3, 16, 32, 32, 3), (1, 16, 32, 32, 3)]
    assert arrays[0]["videos"].dtype == np.uint8
    assert np.concatenate([a["labels"] for a in arrays]).tolist() == [0, 0, 1, 1]
    assert np.concatenate([a["numbers"] for a in arrays]).tolist() == [0, 1, 2, 3]


def test_damaged_records(toy: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A chunk of a damaged record is generated again, and told; a damaged manifest is named."""
    first = sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)
    before = contents(tmp_path)
    record = tmp_path / "chunks" / "00001.json"
    whole = record.read_bytes()
    for content in (b"", b"[]", b"{", b"\xff", b'[{"file": 3}]', whole.replace(b"Right", b"Left")):
        record.write_bytes(content)
        caplog.clear()
        assert sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2) == first
        assert "00001.json is damaged: its clips are generated again" in caplog.text
        assert contents(tmp_path) == before
    for content in (b"", b"[]", b"\xff", b"[" * 10**5):
        (tmp_path / "samples.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"samples\.json .*: remove it with the files"):
            sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)


def test_nothing_is_made_twice(
    toy: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)
    before = contents(tmp_path)
    (tmp_path / "Right-0-001.mp4").unlink()  # deleted since
    written: list[str] = []
    write = sample_set_module.write_video

    def record(path: Path, *rest: Any) -> None:
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(sample_set_module, "write_video", record)
    sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)
    assert written == ["Right-0-001.mp4"] and contents(tmp_path) == before
    sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)
    assert len(written) == 1
    (tmp_path / "chunks" / "00001.json").unlink()  # killed between two files of this chunk
    sample_set(toy, (), 2, 0, GUIDED, tmp_path, chunk=2)
    assert len(written) == 3 and contents(tmp_path) == before  # nobody vouches for its files


@pytest.mark.parametrize("file_format", ["mp4", "npz"])
@pytest.mark.parametrize("harm", ["delete", "cut", "same size", "record", "empty record"])
def test_files_are_checked_not_only_records(
    toy: Models, tmp_path: Path, file_format: Any, harm: str
) -> None:
    def run() -> dict[str, Any]:
        return sample_set(toy, ["Left"], 2, 0, GUIDED, tmp_path, format=file_format, chunk=1)

    result, before = run(), contents(tmp_path)
    path = Path(result["samples"][1]["file"])
    if harm == "delete":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "same size":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "record":
        (tmp_path / "chunks" / "00001.json").write_text('[{"class": "Left"')
    else:
        (tmp_path / "chunks" / "00001.json").write_bytes(b"")
    assert run() == result and contents(tmp_path) == before


def test_a_damaged_manifest_is_named(toy: Models, tmp_path: Path) -> None:
    sample_set(toy, ["Left"], 1, 0, GUIDED, tmp_path)
    (tmp_path / "samples.json").write_text("[")
    with pytest.raises(ValueError, match=r"samples\.json is (damaged|no JSON)"):
        sample_set(toy, ["Left"], 1, 0, GUIDED, tmp_path)


def test_class_names_stay_in_the_folder(toy: Models, tmp_path: Path) -> None:
    """Names of classes come with a model that somebody else may have made."""
    names = ("../../up", "C:\\x/NUL\0")
    models = copy.copy(toy)
    models.generator = copy.copy(toy.generator)
    models.generator.vocabulary = toy.generator.vocabulary.model_copy(update={"class_names": names})
    output = tmp_path / "a" / "b" / "out"
    result = sample_set(models, (), 1, 0, GUIDED, output)
    files = [path for path in tmp_path.rglob("*.mp4")]
    assert len(files) == 2 and all(path.parent == output for path in files)
    assert [row["class"] for row in result["samples"]] == list(names)


def test_two_of_one_command_at_once(toy_dir: Path, toy: Models, tmp_path: Path) -> None:
    """Both take all the work and write the same files under each other's eyes."""
    sample_set(toy, (), 5, 0, GUIDED, tmp_path / "one", plain=True, chunk=2)
    output = tmp_path / "two"
    for process in [start(toy_dir, output, 0, 1) for _ in range(2)]:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert contents(output) == contents(tmp_path / "one")


def test_another_command_is_refused(toy: Models, tmp_path: Path) -> None:
    sample_set(toy, (), 1, 0, GUIDED, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"another command \(seed\); name another folder"):
        sample_set(toy, (), 1, 1, GUIDED, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another command \(settings\)"):
        sample_set(toy, (), 1, 0, SamplingConfig(guidance=3.0), tmp_path / "out")
    with pytest.raises(ValueError, match=r"another command \(count\)"):
        sample_set(toy, (), 2, 0, GUIDED, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"without samples\.json"):
        sample_set(toy, (), 1, 0, GUIDED, tmp_path / "out")
    with pytest.raises(ValueError, match="named twice"):
        sample_set(toy, ["left", "Left"], 1, 0, GUIDED, tmp_path / "twice")
    with pytest.raises(ValueError, match="at least 1"):
        sample_set(toy, (), 0, 0, GUIDED, tmp_path / "none")
    assert not (tmp_path / "twice").exists() and not (tmp_path / "none").exists()


def test_limits_that_cannot_be_obeyed_claim_no_folder(toy: Models, tmp_path: Path) -> None:
    settings = SamplingConfig(budget=BudgetConfig(max_tokens=3))
    with pytest.raises(EvatokError, match="the shortest clip has 4"):
        sample_set(toy, (), 1, 0, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_processes_change_nothing(toy_dir: Path, toy: Models, tmp_path: Path) -> None:
    """Two processes at a time, killed at random, begun again, lastly with three."""
    sample_set(toy, (), 5, 0, GUIDED, tmp_path / "whole", plain=True, chunk=2)
    chance = random.Random(0)
    output = tmp_path / "killed"
    for attempt in range(3):
        processes = [start(toy_dir, output, rank, 2) for rank in range(2)]
        deadline = time.monotonic() + 60
        # They die in the middle of the work: after some files, at any moment.
        wanted = 1 + 3 * attempt
        while len(list(output.glob("*.mp4"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        for process in processes:
            process.kill()
            process.communicate()
    for process in [start(toy_dir, output, rank, 3) for rank in range(3)]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["processes"] == 3
    assert contents(output) == contents(tmp_path / "whole")
