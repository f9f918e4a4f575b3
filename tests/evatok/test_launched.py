"""The command under plain torchrun: a rank that is killed, and the end of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evatok.cli.app import is_ours
from evatok.workflows.train import run_training
from tests.evatok.processes import children


@pytest.fixture
def settings(footage: Path, tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    former = "{width: 16, layers: 1, heads: 2}"
    path.write_text(f"""
stage: proxy
data:
  size: 32
  num_frames: 16
  cache_dir: {tmp_path / "cache"}
  sources: [{{kind: ucf101, root: {footage}}}]
model:
  {{levels: [1, 4], num_frames: 16, size: 32, codebook_size: 16,
    encoder: {former}, decoder: {former}}}
codebook: {{restart_every: 0}} # its upkeep is compared in tests/tokenizer
validation_clips: 2
train: {{steps: 40, batch_size: 4, save_every: 1, validate_every: 0, log_every: 30}}
""")
    return path


def flat(model: Path) -> torch.Tensor:
    """All weights in one."""
    tensors = load_file(model / "model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def test_a_dead_rank_ends_the_rest_and_the_run_goes_on(
    settings: Path, tmp_path: Path, root: Path, torchrun: Callable[[Sequence[object]], str]
) -> None:
    """The weights of one process in the end, exported once."""
    folder = tmp_path / "two"
    words = ["-m", "evatok", "train", str(settings), "--run-dir", str(folder)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    first = subprocess.Popen(
        [*launcher, "--nproc-per-node", "2", *words],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "step-00000002").is_dir():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    ranks = children(first.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert first.wait(timeout=120) == 1
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert not (folder / "model").exists()
    assert "goes on from step" in torchrun([*words, "train.steps=42"])
    run_training(settings, ["train.steps=42"], tmp_path / "one")
    run_training(settings, ["train.steps=1", "train.optimizer.lr=1e-12"], tmp_path / "start")
    one, two, start = (flat(tmp_path / name / "model") for name in ("one", "two", "start"))
    # 42 steps of AdamW make more of roundings than the six in tests/tokenizer/test_processes.py
    assert float((one - two).norm() / (one - start).norm()) < 0.05
    assert not list(folder.rglob("*partial*"))


def test_feature_network_of_two_processes_is_that_of_one(
    footage: Path, tmp_path: Path, torchrun: Callable[[Sequence[object]], str]
) -> None:
    """Its batch norms count the batches of all processes."""
    path = tmp_path / "features.yaml"
    path.write_text(f"""
stage: features
data:
  size: 32
  num_frames: 16
  flip: false
  cache_dir: {tmp_path / "cache"}
  sources: [{{kind: ucf101, root: {footage}}}]
model: {{widths: [8, 8, 8], dim: 8}}
train:
  {{steps: 6, batch_size: 8, save_every: 0, validate_every: 0, log_every: 6, precision: fp32,
    optimizer: {{name: adamw, lr: 3.0e-3}}}}
""")
    torchrun(["-m", "evatok", "train", path, "--run-dir", tmp_path / "two"])
    run_training(path, [], tmp_path / "one")
    run_training(path, ["train.steps=1", "train.optimizer.lr=1e-12"], tmp_path / "start")
    one, two, start = (
        load_file(tmp_path / name / "model" / "model.safetensors")
        for name in ("one", "two", "start")
    )
    way = sum(float((one[n] - start[n]).norm()) for n in one if n.endswith(("weight", "bias")))
    assert way > 0.1
    for name, value in one.items():  # weights, running means and variances, number of steps
        assert float((value - two[name]).float().norm()) < 1e-4 * way, name


def test_only_some_commands_are_shared() -> None:
    for rank, expected in (("0", True), ("1", False)):
        place = {"RANK": rank, "WORLD_SIZE": "2"}
        assert is_ours(["train", "x.yaml"], place) and len(place) == 2
        assert is_ours(["reconstruct", "film.mp4"], place) == expected
        assert not place  # the first is alone from here on
