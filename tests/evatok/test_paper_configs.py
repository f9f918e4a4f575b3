"""The settings of the paper's models: they load, agree, and have the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evatok.core.config import load_config, read_yaml
from evatok.plan.estimate import plan
from evatok.plan.info import describe
from evatok.plan.training_networks import SHAPES
from evatok.workflows.pipeline_settings import WIDE, read_settings
from evatok.workflows.search import SearchConfig
from evatok.workflows.tokens import TokensConfig
from evatok.workflows.train import STAGES
from generator.conditions import FrameCondition
from tokenizer.training.tokenizer_stage import FinalConfig, TokenizerTraining

ROOT = Path(__file__).resolve().parent.parent.parent / "configs"
FAMILIES = ("webvid", "ucf101", "k600", "images")
SCHEMAS: dict[str, Any] = {name: kind.schema for name, kind in STAGES.items()} | {
    "search": SearchConfig,
    "tokens": TokensConfig,
}
ALL = sorted(p for family in FAMILIES for p in (ROOT / family).glob("*.yaml"))
STAGE_FILES = [path for path in ALL if "stage" in read_yaml(path)]


def load(path: Path) -> Any:
    """Settings of any stage."""
    return load_config(SCHEMAS[read_yaml(path)["stage"]], path)


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_settings_load(path: Path) -> None:
    """And a tokenizer's name says which terms train it: no `semantic` that is switched off."""
    config = load(path)
    if isinstance(config, TokenizerTraining):
        assert config.adversarial.weight > 0
        assert config.adversarial.discriminator.kind == (
            "semantic" if "semantic" in path.stem else "patch"
        )
        is_aligned = "unaligned" not in path.stem and path.parent.name != "images"
        assert (config.alignment.weight > 0) == is_aligned


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("webvid/proxy", 145e6),
        ("webvid/final", 145e6),
        ("ucf101/final", 145e6),
        ("ucf101/uniform-400k", 145e6),
        ("webvid/router", 19.9e6),
        ("ucf101/router", 19.9e6),
        *((f"{family}/generator", 99e6) for family in ("ucf101", "k600")),
        *((f"{family}/generator-327m", 327e6) for family in ("ucf101", "k600")),
        *((f"{family}/generator-633m", 633e6) for family in ("ucf101", "k600")),
    ],
)
def test_sizes_are_the_published_ones(name: str, published: float) -> None:
    result = describe(str(ROOT / f"{name}.yaml"))
    (row,) = [row for row in result["parts"] if row["part"] in STAGES]
    assert row["parameters"] == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("family", ["webvid", "ucf101"])
def test_the_router_loads_the_clips_that_were_searched(family: str) -> None:
    search, router = (load(ROOT / family / f"{name}.yaml") for name in ("search", "router"))
    assert router.data == search.data
    assert (router.search_batch, router.search_seed) == (search.batch_size, search.seed)


def test_the_small_models_are_one_pipeline() -> None:
    """Every file agrees with the one before; sizes lie between nano's and the paper's."""
    settings = read_settings(ROOT / "small", "cpu")
    assert {"preference", WIDE} <= set(settings)
    for name, low, high in (
        ("proxy", 25e6, 40e6),
        ("router", 4e6, 8e6),
        ("generator", 90e6, 110e6),
    ):
        (row,) = [
            row for row in describe(str(ROOT / "small" / f"{name}.yaml"))["parts"]
            if row["part"] in STAGES
        ]  # fmt: skip
        assert low < row["parameters"] < high
    planned = plan(ROOT / "small", 1, "rtx4090")
    assert [row["stage"] for row in planned["stages"]] == [
        "proxy", "search", "router", "preference", "final", WIDE, "generator",
    ]  # fmt: skip
    assert all(row["hours"] for row in planned["stages"]) and planned["gpu_hours"] < 48


def test_pictures_are_one_block_of_eight_levels() -> None:
    levels = (32, 64, 96, 128, 192, 256, 384, 512)
    for name in ("proxy", "final", "uniform", "router"):
        model = load(ROOT / "images" / f"{name}.yaml").model
        assert model.levels == levels
        assert (model.num_frames, model.patch[0]) == (1, 1)
    assert load(ROOT / "images/uniform.yaml").uniform == 256


def test_the_papers_values() -> None:
    proxy, final = load(ROOT / "webvid/proxy.yaml"), load(ROOT / "ucf101/final.yaml")
    assert (proxy.train.steps, proxy.model.codebook_size) == (400_000, 16_384)
    assert (final.train.steps, final.model.codebook_size) == (1_000_000, 8_192)
    assert (final.train.batch_size, final.train.optimizer.lr) == (128, 1e-4)
    assert final.train.schedule.final_ratio == 0.01
    for family in ("ucf101", "k600"):
        names = ("generator", "generator-327m", "generator-633m")
        scales = [load(ROOT / family / f"{name}.yaml").sampling.guidance for name in names]
        assert scales == ([2.5, 1.75, 1.75] if family == "ucf101" else [1.0] * 3)


def test_generators_expect_what_their_tokens_will_be() -> None:
    for family in ("ucf101", "k600"):
        for suffix in ("", "-uniform"):
            tokens = load(ROOT / family / f"tokens{suffix}.yaml")
            generator = load(ROOT / family / f"generator{suffix}.yaml")
            assert generator.tokens == Path("runs") / family / f"tokens{suffix}"
            assert generator.expect.frames == tokens.frames
            assert generator.tokenizer == tokens.tokenizer
    assert load(ROOT / "k600/tokens.yaml").frames == FrameCondition(prefix=(512, 128))


def test_a_final_tokenizer_has_one_way_to_assign() -> None:
    path = ROOT / "webvid/uniform-400k.yaml"
    for override in ("uniform=null", "router=runs/router", "uniform=100"):
        with pytest.raises(ValueError, match=r"router or a uniform level|not one of levels"):
            load_config(FinalConfig, path, [override])


def test_codes_are_weighed_as_means_over_their_numbers() -> None:
    """Our losses are sums over a code's numbers; the weights 1 and 0.25 are of means."""
    config = load_config(FinalConfig, ROOT / "webvid/final.yaml")
    width = config.model.code_dim
    assert (config.loss.codebook * width, config.loss.commitment * width) == (1.0, 0.25)


def test_what_only_training_holds_is_listed_apart() -> None:
    full = describe(str(ROOT / "webvid/final-semantic.yaml"))
    sizes = {row["part"]: row["parameters"] for row in full["training_only"]}
    assert list(sizes) == [
        "alignment head φ",
        "discriminator, semantic",
        "vjepa2-l, frozen",
        "videomae, frozen",
        "lpips, frozen",
    ]
    assert sum(row["parameters"] for row in full["training_only"] if row["trained"]) < 25e6
    plain = describe(str(ROOT / "ucf101/uniform-400k-unaligned.yaml"))
    parts = [row["part"] for row in plain["training_only"]]
    assert parts == ["discriminator, patch", "lpips, frozen"]
    nano = describe(str(ROOT / "nano/proxy.yaml"))
    assert nano["training_only"] == []


def test_published_shapes_are_transformers_own() -> None:
    import transformers

    nets = {
        "videomae": (transformers.VideoMAEConfig(), transformers.VideoMAEModel),
        "vjepa2-l": (transformers.VJEPA2Config(), transformers.VJEPA2Model),
    }
    for name, (config, kind) in nets.items():
        with torch.device("meta"):
            net = kind(config)
        shape = SHAPES[name]
        assert (shape.num_layers, shape.channels) == (config.num_hidden_layers, config.hidden_size)
        assert shape.tubelet == (config.tubelet_size, config.patch_size, config.patch_size)
        body = net.encoder if name == "vjepa2-l" else net
        assert shape.parameters == sum(p.numel() for p in body.parameters())
