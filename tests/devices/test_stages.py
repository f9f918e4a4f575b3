"""Every stage trains, looks at held-out clips, saves and resumes on a device, as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evaluation.encoders.masked import MaskedConfig
from evaluation.encoders.nano import FeaturesConfig
from evaluation.perceptual.distance import FeatureDistance
from evatok.hub import load_model
from evatok.workflows.tokens import TokensConfig, write_shards
from evatok.workflows.train import train_config
from generator.gpt import GPT
from generator.train import GeneratorConfig
from tests.devices.conftest import FRAMES, LEVELS, SIZE
from tests.devices.simulated import DEVICE, simulated
from tests.tokenizer.frozen import ToyEncoder
from tokenizer.model import VideoTokenizer
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig, TokenizerStage

Settings = dict[str, Any]
FILE = "model.safetensors"


def on(device: str, schema: Any, settings: Settings, **train: Any) -> Any:
    return schema.model_validate(
        settings | {"train": settings["train"] | {"device": device} | train}
    )


def check(schema: Any, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train on the device in two sittings, and on the CPU in one: the same weights and numbers."""
    with simulated():
        train_config(on("sim", schema, settings, steps=1), folder / "sim")
        found = train_config(on("sim", schema, settings), folder / "sim")
    expected = train_config(on("cpu", schema, settings), folder / "cpu")
    for name, value in expected["validation"].items():
        assert found["validation"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    # Adam moves a weight by the rate, whatever rounding did to a gradient near 0.
    atol = 2e-4 if settings["train"]["precision"] == "fp32" else 2e-3
    ours, theirs = (load_file(folder / d / "model" / FILE) for d in ("sim", "cpu"))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=atol, msg=name)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_proxy(tokenizer_settings: Settings, tmp_path: Path, precision: str) -> None:
    train = tokenizer_settings["train"] | {"precision": precision}
    found = check(
        ProxyConfig, tokenizer_settings | {"start_from_data": True, "train": train}, tmp_path
    )
    assert {"psnr_uniform_1", "psnr_uniform_4", "codebook_use"} <= set(found["validation"])
    assert (tmp_path / "sim" / "images").is_dir()


def test_proxy_against_patches(tokenizer_settings: Settings, tmp_path: Path) -> None:
    game = {
        "weight": 0.1, "kind": "non_saturating", "smoothing": 0.15, "lecam": 0.1, "adaptive": True,
        "discriminator": {
            "kind": "patch", "patch": [4, 8, 8], "width": 16, "layers": 1, "heads": 2,
        },
    }  # fmt: skip
    check(ProxyConfig, tokenizer_settings | {"adversarial": game}, tmp_path)


def test_proxy_with_every_frozen_network(
    tokenizer_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perceptual loss, alignment teacher, semantic discriminator."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 3)

        def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
            return [self.layer(frames)]

    class Follower(ToyEncoder):
        def hidden(self, clips: torch.Tensor, layers: Any) -> list[torch.Tensor]:
            self.net.to(clips.device)
            return super().hidden(clips, layers)

    def distance(*_: Any) -> FeatureDistance:
        torch.manual_seed(1)
        return FeatureDistance("toy", "0", Net(), [torch.ones(4)])

    monkeypatch.setattr("tokenizer.losses.reconstruction.load_perceptual", distance)
    for module in ("alignment", "semantic_discriminator"):
        monkeypatch.setattr(
            f"tokenizer.losses.{module}.load_encoder", lambda _: Follower((4, 4, 4))
        )
    more = {
        "loss": {"perceptual": {"weight": 0.1, "frames": 2}},
        "alignment": {"weight": 0.1, "layer": 1, "encoder": "videomae-nano"},
        "adversarial": {
            "weight": 0.1,
            "discriminator": {"kind": "semantic", "layers": [1, 2], "width": 8, "groups": 2},
        },
    }
    check(ProxyConfig, tokenizer_settings | more, tmp_path)


@pytest.mark.parametrize("preference", [False, True])
def test_router(
    tokenizer_settings: Settings, searched: Path, tmp_path: Path, preference: bool
) -> None:
    settings = {
        "data": tokenizer_settings["data"],
        "train": tokenizer_settings["train"],
        "table": searched / "train",
        "held_out_table": searched / "test",
        "search_batch": 2,
        "model": {
            "levels": LEVELS, "num_frames": FRAMES, "size": SIZE, "width": 16, "layers": 1,
            "heads": 2, "preference": preference,
        },
    }  # fmt: skip
    check(RouterTraining, settings, tmp_path)


@pytest.mark.parametrize("w_q_range", [None, (0.5, 1.5)])
def test_final(
    tokenizer_settings: Settings,
    routers: dict[bool, Path],
    tmp_path: Path,
    w_q_range: tuple[float, float] | None,
) -> None:
    settings = tokenizer_settings | {
        "stage": "final", "router": routers[w_q_range is not None], "w_q_range": w_q_range,
        "train": tokenizer_settings["train"] | {"grad_accumulation": 2, "precision": "bf16"},
    }  # fmt: skip
    found = check(FinalConfig, settings, tmp_path)
    assert {"psnr_router", "mean_tokens"} <= set(found["validation"])


@pytest.mark.parametrize("w_q_range", [None, (0.2, 1.8)])
def test_the_router_of_stage_4_works_where_the_model_does(
    tokenizer_settings: Settings,
    routers: dict[bool, Path],
    w_q_range: tuple[float, float] | None,
) -> None:
    """It chooses on the device what it chose for the whole batch on the CPU, in bf16 too."""
    stage = TokenizerStage(
        FinalConfig.model_validate(
            tokenizer_settings
            | {"stage": "final", "router": routers[w_q_range is not None], "w_q_range": w_q_range}
            | {"train": tokenizer_settings["train"] | {"batch_size": 8}}
        )
    )
    batch = stage.batch(0, 0, 1)
    assert stage.router is not None
    expected = stage.router.assign(batch[0], w_q=batch[1] if w_q_range else None)
    assert len(expected.unique(dim=0)) > 1
    with simulated() as device, torch.autocast(device.type, torch.bfloat16):
        for parts in (1, 4):
            cut = stage.split(batch, parts)
            found = [stage.assigned(tuple(x.to(device) for x in part)) for part in cut]
            assert all(x.device == DEVICE for x in found)
            assert torch.equal(torch.cat(found).cpu(), expected)


def test_features(data: Settings, tokenizer_settings: Settings, tmp_path: Path) -> None:
    settings = {
        "stage": "features", "data": data, "train": tokenizer_settings["train"],
        "model": {"widths": [4, 4, 8, 8], "dim": 6},
    }  # fmt: skip
    check(FeaturesConfig, settings, tmp_path)


def test_masked(data: Settings, tokenizer_settings: Settings, tmp_path: Path) -> None:
    settings = {
        "stage": "videomae",
        "data": data, "train": tokenizer_settings["train"], "mask_ratio": 0.75,
        "model": {
            "patch": 8, "width": 32, "layers": 1, "heads": 2, "decoder_width": 16,
            "decoder_layers": 1, "decoder_heads": 1,
        },
    }  # fmt: skip
    check(MaskedConfig, settings, tmp_path)


def test_generator(
    toy_dir: Path, data: Settings, tokenizer_settings: Settings, tmp_path: Path
) -> None:
    tokens = TokensConfig.model_validate(
        {
            "data": data, "tokenizer": toy_dir / "final", "router": toy_dir / "router",
            "windows": 1, "batch_size": 4, "frames": {"prefix": [4, 1]}, "device": "cpu",
        }
    )  # fmt: skip
    write_shards(tokens, tmp_path / "tokens")
    settings = {
        "tokens": tmp_path / "tokens", "tokenizer": toy_dir / "final", "frame_share": 0.5,
        "model": {"width": 16, "layers": 1, "heads": 2, "hidden": 32},
        "train": tokenizer_settings["train"], "validation_clips": 4, "pictures": 2,
    }  # fmt: skip
    check(GeneratorConfig, settings, tmp_path)
    assert list((tmp_path / "sim" / "images").glob("*predictions*"))
    assert isinstance(load_model(GPT, tmp_path / "sim" / "model"), GPT)


def test_nearest_is_float32_whatever_autocast_says(tokenizer_settings: Settings) -> None:
    model = VideoTokenizer(ProxyConfig.model_validate(tokenizer_settings).model).quantizer
    unit = torch.nn.functional.normalize(torch.randn(4000, 4), dim=-1)
    expected = model.nearest(unit)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.nearest(unit), expected)
