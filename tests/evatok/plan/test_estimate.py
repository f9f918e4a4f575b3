"""Plans of the shipped settings: sums that must hold, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evatok.plan.estimate import GPUS, plan
from evatok.plan.flops import clip_flops
from evatok.plan.training_networks import training_only_flops
from evatok.plan.untrained import model_of
from evatok.workflows.train import load_training
from tokenizer.model import VideoTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent.parent / "configs"


def test_a_uniform_tokenizer() -> None:
    path = ROOT / "ucf101/uniform-400k.yaml"
    result = plan(path, num_gpus=64, gpu="v100", mfu=0.5)
    model = model_of(load_training(path))
    assert isinstance(model, VideoTokenizer)
    costs = clip_flops(model, (256,) * 4)
    step = 128 * sum(v for name, v in costs.items() if name.startswith("train/"))
    config: Any = load_training(path)
    apart = training_only_flops(config)
    assert list(apart) == ["lpips", "alignment", "discriminator"]
    step += 128 * sum(apart.values())
    assert result["flops_a_step"]["all"] == step
    assert result["hours"] == pytest.approx(step * 400e3 / (64 * 125e12 * 0.5) / 3600, rel=0.01)
    count = sum(p.numel() for p in model.parameters())
    assert result["parameters"]["all"] == count
    assert sum(v for k, v in result["parameters"].items() if k != "all") == count
    memory = result["memory_gib"]
    assert memory["rows_a_gpu"] == 2
    assert memory["optimizer"] == pytest.approx(8 * count / 1024**3, abs=0.01)
    assert result["bytes"]["checkpoint"] == 16 * count  # weights, two moments, average


def test_networks_of_the_loss_are_counted() -> None:
    """By hand: VGG16's products at 128 × 128, V-JEPA 2-L's layers on 2 048 tokens."""
    full: Any = load_training(ROOT / "webvid/final-semantic.yaml")
    plain: Any = load_training(ROOT / "ucf101/uniform-400k-unaligned.yaml")
    nano: Any = load_training(ROOT / "nano/proxy.yaml")
    flops = training_only_flops(full)
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sides = [128, 128, 64, 64, 32, 32, 32, 16, 16, 16, 8, 8, 8]
    vgg = sum(2 * 9 * a * b * s * s for a, b, s in zip(widths, widths[1:], sides, strict=False))
    assert flops["lpips"] == 3 * 16 * vgg
    teacher = 24 * (2 * 12 * 1024**2 * 2048 + 4 * 2048**2 * 1024)
    assert teacher < flops["alignment"] < 1.1 * teacher
    student = 12 * (2 * 12 * 768**2 * 1568 + 4 * 1568**2 * 768)
    assert 4 * student < flops["discriminator"] < 4.5 * student
    assert list(training_only_flops(plain)) == ["lpips", "discriminator"]
    assert training_only_flops(nano) == {}


def test_checkpointing_trades_operations_for_memory() -> None:
    path = ROOT / "k600/generator.yaml"
    plain, kept = plan(path), plan(path, checkpointing=True)
    assert kept["memory_gib"]["activations"] < plain["memory_gib"]["activations"] / 4
    ratio = kept["flops_a_step"]["all"] / plain["flops_a_step"]["all"]
    assert ratio == pytest.approx(4 / 3, rel=1e-3)


def test_more_gpus_share_the_rows() -> None:
    path = ROOT / "ucf101/generator.yaml"
    one, eight = plan(path), plan(path, num_gpus=8)
    assert eight["hours"] == pytest.approx(one["hours"] / 8, rel=0.01)
    assert eight["memory_gib"]["rows_a_gpu"] * 8 == one["memory_gib"]["rows_a_gpu"]


def test_a_search_walks_the_tree() -> None:
    result = plan(ROOT / "webvid/search.yaml")
    assert 0.25 < result["flops_a_clip"]["ratio"] < 0.45
    assert result["clips"] == 101_024


def test_a_search_counts_its_perceptual_network() -> None:
    """5 + 25 + 125 + 625 blocks of the tree and the 4 real ones through VGG16, and its column."""
    result = plan(ROOT / "webvid/search.yaml")
    places, channels, frame = 128 * 128, 3, 0
    for group in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in group:
            frame += 2 * places * 9 * channels * width
            channels = width
        places //= 4
    assert result["perceptual_flops_a_clip"] == {"lpips": 784 * 4 * frame}
    assert result["flops_a_clip"]["tree"] > 784 * 4 * frame
    assert result["bytes"]["table"] == 101_024 * 625 * 2 * 4


def test_refusals(tmp_path: Path) -> None:
    path = ROOT / "webvid/router.yaml"
    with pytest.raises(ValueError, match="'gtx' is not one of h100"):
        plan(path, gpu="gtx")
    with pytest.raises(ValueError, match="--gpus 0"):
        plan(path, num_gpus=0)
    with pytest.raises(ValueError, match="--mfu 2"):
        plan(path, mfu=2)
    with pytest.raises(FileNotFoundError, match="no settings of a stage"):
        plan(tmp_path)
    assert GPUS["h100"].memory == 80
