"""Numbers that no change of names or places may move: losses of toy trainings, ids and samples.

`tests/assets/golden/unchanged.json` holds them. A change that means to move one says why, and
writes the file again:

    EVATOK_WRITE_NUMBERS=1 python -m pytest tests/evatok/test_unchanged_numbers.py
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evatok
from evatok.core.compute.precision import has_bfloat16
from evatok.workflows.search import SearchConfig, search_config
from evatok.workflows.tokens import TokensConfig, write_shards
from evatok.workflows.train import train_config
from generator.train import GeneratorConfig
from tests.evatok.conftest import FRAMES, LEVELS, SIZE
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig
from training.runs.run_log import read_rows

Settings = dict[str, Any]
FORMER = {"width": 16, "layers": 1, "heads": 2}
TRAIN = {
    "steps": 3, "batch_size": 2, "save_every": 3, "validate_every": 3, "log_every": 1,
    "ema_decay": 0.5, "precision": "fp32", "device": "cpu",
}  # fmt: skip
TOKENIZER = {
    "model": {
        "levels": LEVELS, "num_frames": FRAMES, "size": SIZE, "encoder": FORMER,
        "decoder": FORMER, "codebook_size": 16, "code_dim": 4,
    },
    "codebook": {"restart_every": 1, "restart_below": 1.0},
    "loss": {"entropy": 0.1},
    "validation_clips": 2,
    "train": TRAIN,
}  # fmt: skip


def machine() -> str:
    """Name what the last bits of a sum depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    vendor = next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "?")
    bf16 = ", bf16" if has_bfloat16("cpu") else ""
    level = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {vendor}, {level}{bf16}"


@pytest.fixture(scope="module")
def golden(assets: Path) -> Settings:
    return json.loads((assets / "golden" / "unchanged.json").read_text("utf-8"))


@pytest.fixture
def check(assets: Path, golden: Settings) -> Callable[[str, Any], None]:
    def compare(name: str, found: Any) -> None:
        if os.environ.get("EVATOK_WRITE_NUMBERS"):
            golden.update({name: found, "machine": machine()})
            text = json.dumps(golden, indent=1, sort_keys=True)
            (assets / "golden" / "unchanged.json").write_text(text + "\n", "utf-8")
        assert found == (golden[name] if golden["machine"] == machine() else near(golden[name]))

    return compare


def near(expected: Any) -> Any:
    """Allow for another order of sums; a digest of ids says nothing then."""
    if isinstance(expected, dict):
        return {key: near(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [near(value) for value in expected]
    return Anything() if isinstance(expected, str) else pytest.approx(expected, rel=2e-3)


class Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def digest(ids: torch.Tensor) -> str:
    """SHA-256 of integers."""
    return hashlib.sha256(ids.to(torch.int64).cpu().numpy().tobytes()).hexdigest()


@pytest.fixture
def data(footage: Path, tmp_path: Path) -> Settings:
    return {
        "sources": [{"kind": "ucf101", "root": footage}], "num_frames": FRAMES, "size": SIZE,
        "cache_dir": tmp_path / "cache", "workers": 1,
    }  # fmt: skip


def losses(schema: Any, settings: Settings, folder: Path) -> list[Settings]:
    """Train for three steps; every logged number of each but its times."""
    train_config(schema.model_validate(settings), folder)
    rows = [row for row in read_rows(folder / "log.jsonl") if row["kind"] == "train"]
    assert len(rows) == 3
    timed = ("per_second", "seconds", "time", "memory")
    return [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in rows]


@pytest.mark.usefixtures("slow_bfloat16")
@pytest.mark.parametrize("kind", ["proxy", "proxy-bf16", "proxy-adversarial"])
def test_losses_of_proxy(data: Settings, tmp_path: Path, check: Any, kind: str) -> None:
    settings = TOKENIZER | {"data": data}
    if kind == "proxy-bf16":
        settings |= {"train": TRAIN | {"precision": "bf16", "grad_accumulation": 2}}
    if kind == "proxy-adversarial":
        settings["adversarial"] = {
            "weight": 0.1, "kind": "non_saturating", "lecam": 0.1, "adaptive": True,
            "discriminator": {
                "kind": "patch", "patch": [4, 8, 8], "width": 16, "layers": 1, "heads": 2,
            },
        }  # fmt: skip
    check(f"losses of {kind}", losses(ProxyConfig, settings, tmp_path / "run"))


def test_losses_of_router(data: Settings, toy_dir: Path, tmp_path: Path, check: Any) -> None:
    search = {
        "data": data, "model": toy_dir / "proxy", "clips": 4, "held_out_clips": 2,
        "batch_size": 2, "device": "cpu",
    }  # fmt: skip
    search_config(SearchConfig.model_validate(search), tmp_path / "search")
    settings = {
        "data": data, "train": TRAIN, "search_batch": 2,
        "table": tmp_path / "search" / "train", "held_out_table": tmp_path / "search" / "test",
        "model": {"levels": LEVELS, "num_frames": FRAMES, "size": SIZE, **FORMER},
    }  # fmt: skip
    check("losses of router", losses(RouterTraining, settings, tmp_path / "run"))


def test_losses_of_final(data: Settings, toy_dir: Path, tmp_path: Path, check: Any) -> None:
    settings = TOKENIZER | {"data": data, "stage": "final", "router": toy_dir / "router"}
    check("losses of final", losses(FinalConfig, settings, tmp_path / "run"))


def test_losses_of_generator(data: Settings, toy_dir: Path, tmp_path: Path, check: Any) -> None:
    tokens = {
        "data": data, "tokenizer": toy_dir / "final", "router": toy_dir / "router",
        "windows": 1, "batch_size": 4, "frames": {"prefix": [4, 1]}, "device": "cpu",
    }  # fmt: skip
    write_shards(TokensConfig.model_validate(tokens), tmp_path / "tokens")
    settings = {
        "tokens": tmp_path / "tokens", "tokenizer": toy_dir / "final", "frame_share": 0.5,
        "model": {"width": 16, "layers": 1, "heads": 2, "hidden": 32}, "train": TRAIN,
        "validation_clips": 4, "pictures": 2,
    }  # fmt: skip
    check("losses of generator", losses(GeneratorConfig, settings, tmp_path / "run"))


def test_ids_and_samples_of_nano(
    square: Callable[[int, int, int, int], np.ndarray], check: Any
) -> None:
    model = evatok.load("nano", device="cpu")
    frames = np.stack([square(16, 64, 64, seed) for seed in range(4)])
    clips = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    found: Settings = {}
    for quality in (None, 0.6, 1.6):
        tokens = model.encode(clips, quality=quality)
        found[f"ids at {quality}"] = {
            "assignment": digest(tokens.assignment),
            "ids": digest(tokens.ids),
            "decoded": float(model.decode(tokens).double().square().mean()),
        }
    videos = model.sample(classes=["Frogger", "Boxing"], guidance=2.0, seed=3)
    made = torch.stack([torch.as_tensor(video.frames) for video in videos])  # (2, F, H, W, 3)
    found["samples"] = {"mean": float(made.double().mean()), "bytes": digest(made)}
    check("nano", found)
