"""`evatok tokens` by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from evatok.core.config import load_config
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import RankInfo
from evatok.hub import save_model
from evatok.workflows.tokens import TokensConfig, run_tokens, write_shards
from tokenizer.router import Router, RouterConfig

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def settings(toy_dir: Path, footage: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(f"""
data:
  size: 32
  num_frames: 16
  workers: 1
  cache_dir: {tmp_path / "cache"}
  sources: [{{kind: ucf101, root: {footage}}}]
tokenizer: {toy_dir}/final
router: {toy_dir}/router
frames: {{prefix: [4, 1]}}
windows: 2
batch_size: 4
""")
    return path


def test_w_q_is_for_a_conditioned_router(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(EvatokError, match=r"knows w_q .* only: leave out w_q"):
        run_tokens(settings, ["w_q=1.2"], tmp_path / "t")
    with pytest.raises(EvatokError, match="w_q is the router's"):
        run_tokens(settings, ["w_q=1.2", "router=null", "uniform=2"], tmp_path / "t")
    torch.manual_seed(0)
    router = Router(
        RouterConfig(
            levels=(1, 2, 4), num_frames=16, size=32, width=16, layers=1, heads=2, preference=True
        )
    )
    with torch.no_grad():  # the more w_q, the more tokens
        lengths = router.levels.candidates(4).sum(1).float()
        router.head.bias.copy_(lengths)
        router.head.weight.zero_()
    save_model(router, tmp_path / "router")
    told = run_tokens(settings, [f"router={tmp_path}/router", "w_q=1.2"], tmp_path / "t")
    assert told["train"]["mean_tokens"] == 16
    saved = json.loads((tmp_path / "t" / "train" / "tokens.json").read_text())
    assert saved["note"]["settings"]["w_q"] == 1.2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_processes_write_the_bytes_of_one(settings: Path, tmp_path: Path) -> None:
    one = run_tokens(settings, run_dir=tmp_path / "one")
    assert one["train"]["clips"] == 24 and one["test"]["clips"] == 8
    words = ["tokens", str(settings), "--run-dir", str(tmp_path / "two"), "--json"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "evatok", *words],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    results: list[dict[str, Any]] = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err.decode()
        results.append(json.loads(out.splitlines()[-1]))
    for split in ("train", "test"):  # the last to finish tells of the whole set
        assert one[split] in [result[split] for result in results]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_share_says_that_others_are_at_work(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evatok.workflows.tokens.rank_from_environment", lambda: RankInfo(1, 2))
    result = run_tokens(settings, run_dir=tmp_path / "t")
    assert result["train"] == {"clips": 24, "complete": False}


def test_damaged_files_are_made_again(settings: Path, tmp_path: Path) -> None:
    """Of a finished set: another byte, a cut file. Of an unfinished one: a part of 0 bytes."""
    folder = tmp_path / "t"
    run_tokens(settings, run_dir=folder)
    whole = contents(folder)
    for name, size in (("train/class.bin", None), ("test/frames.npy", 200), ("test/videos.npy", 0)):
        data = whole[name]
        broken = data[:-1] + bytes([data[-1] ^ 1]) if size is None else data[:size]
        (folder / name).write_bytes(broken)
        run_tokens(settings, run_dir=folder)
        assert contents(folder) == whole, name
    share = partial(write_shards, load_config(TokensConfig, settings), tmp_path / "p")
    share(RankInfo(0, 2))
    for path in (tmp_path / "p" / "train.parts").glob("*.npz"):
        path.write_bytes(b"")
    share(RankInfo(0, 2))
    share(RankInfo(1, 2))
    assert contents(tmp_path / "p" / "train").keys() == contents(folder / "train").keys()
    assert contents(tmp_path / "p" / "train") == contents(folder / "train")
