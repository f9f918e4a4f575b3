"""Toy settings of every stage, all of one small family, and a way to run them on either device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evatok.workflows.search import SearchConfig, search_config
from tests.evatok.conftest import CLASSES, FRAMES, LEVELS, SIZE, footage, text_dir, toy_dir
from tokenizer.router import Router, RouterConfig

__all__ = ["CLASSES", "FRAMES", "LEVELS", "SIZE", "footage", "text_dir", "toy_dir"]


@pytest.fixture(autouse=True)
def _clear_random_state(slow_bfloat16: None) -> None:
    # and the CPU computes in the type of the device that it is compared with
    torch.manual_seed(0)


@pytest.fixture
def data(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every stage; one cache of decoded clips for all tests."""
    return {
        "sources": [{"kind": "ucf101", "root": footage}],
        "num_frames": FRAMES,
        "size": SIZE,
        "cache_dir": tmp_path_factory.getbasetemp() / "devices-cache",
        "workers": 1,
    }


@pytest.fixture
def tokenizer_settings(data: dict[str, Any]) -> dict[str, Any]:
    """Of a proxy or final stage, without what makes it one."""
    former = {"width": 16, "layers": 1, "heads": 2}
    return {
        "data": data,
        "model": {
            "levels": LEVELS,
            "num_frames": FRAMES,
            "size": SIZE,
            "encoder": former,
            "decoder": former,
            "codebook_size": 16,
            "code_dim": 4,
        },
        "codebook": {"restart_every": 1, "restart_below": 1.0},
        "loss": {"entropy": 0.1},
        "validation_clips": 2,
        "train": {
            "steps": 2,
            "batch_size": 2,
            "save_every": 1,
            "validate_every": 2,
            "log_every": 1,
            "ema_decay": 0.5,
            "precision": "fp32",
        },
    }


@pytest.fixture
def clip(footage: Path) -> Path:
    return footage / "Right" / "v_Right_g01_c01.mp4"


@pytest.fixture
def searched(toy_dir: Path, data: dict[str, Any], tmp_path: Path) -> Path:
    """Tables of both splits."""
    config = SearchConfig.model_validate(
        {
            "data": data, "model": toy_dir / "proxy", "clips": 4, "held_out_clips": 2,
            "batch_size": 2, "device": "cpu",
        }
    )  # fmt: skip
    search_config(config, tmp_path / "search")
    return tmp_path / "search"


@pytest.fixture
def routers(tmp_path: Path) -> dict[bool, Path]:
    """An untrained router without, and one with w_q as an input."""
    out = {}
    for preference in (False, True):
        torch.manual_seed(3)
        config = RouterConfig(
            levels=LEVELS, num_frames=FRAMES, size=SIZE, width=16, layers=1, heads=2,
            preference=preference,
        )  # fmt: skip
        out[preference] = tmp_path / f"router-{preference}"
        Router(config).save_pretrained(out[preference])
    return out
