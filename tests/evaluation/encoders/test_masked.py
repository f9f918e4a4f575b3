"""The tiny VideoMAE: what it hides, that it learns, and that its encoder comes back frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation.encoders.encoder import EncoderConfig
from evaluation.encoders.load import load_encoder
from evaluation.encoders.masked import MaskedConfig, MaskedStage, masked_model, tube_masks
from evaluation.encoders.transformer import normalise
from evaluation.encoders.videomae import SHIPPED, load_videomae_nano
from evatok.core.config import load_config
from evatok.hub import save_model
from evatok.plan.info import describe
from evatok.workflows.train import train_config
from training.loop import train
from video.writing import write_video


@pytest.fixture
def config(tmp_path: Path) -> MaskedConfig:
    """Two classes of moving pictures, UCF-101 layout: stripes and a square."""
    root = tmp_path / "data"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("Square", "Stripes"), 1):
        (root / name).mkdir(parents=True)
        for group in range(1, 9):
            frames = torch.full((8, 16, 16, 3), 20 * group, dtype=torch.uint8)
            for frame, picture in enumerate(frames):
                if name == "Square":
                    picture[4 : 4 + group, frame : frame + 6] = 250
                else:
                    picture[(frame + group) % 4 :: 4] = 200
            path = f"{name}/v_{name}_g{group:02d}_c01.mp4"
            write_video(root / path, frames.numpy(), fps=15, crf=8)
            lists["test" if group > 6 else "train"].append(path + f" {label}" * (group <= 6))
    (root / "classInd.txt").write_text("1 Square\n2 Stripes\n")
    for split, lines in lists.items():
        (root / f"{split}list01.txt").write_text("\n".join(lines) + "\n")
    return MaskedConfig.model_validate(
        {
            "stage": "videomae",
            "data": {
                "sources": [{"kind": "ucf101", "root": root}], "num_frames": 8, "size": 16,
                "cache_dir": tmp_path / "cache", "workers": 1,
            },
            "model": {
                "patch": 4, "width": 32, "layers": 2, "heads": 2, "decoder_width": 16,
                "decoder_layers": 1, "decoder_heads": 1,
            },
            "mask_ratio": 0.75,
            "train": {
                "steps": 40, "batch_size": 8, "save_every": 20, "validate_every": 40,
                "optimizer": {"lr": 3e-3}, "schedule": {"name": "constant"},
            },
        }
    )  # fmt: skip


def changed(config: MaskedConfig, **changes: Any) -> MaskedConfig:
    return MaskedConfig.model_validate(config.model_dump() | changes)


def test_the_mask_is_a_tube_of_the_right_size() -> None:
    masks = tube_masks(6, (8, 8, 8), 0.9, torch.Generator().manual_seed(0))
    assert masks.shape == (6, 512) and masks.dtype == torch.bool
    by_time = masks.view(6, 8, 64)
    assert (by_time == by_time[:, :1]).all()
    assert (by_time[:, 0].sum(1) == 57).all()  # 90 % of 64 places, rounded down
    assert len(masks.unique(dim=0)) == 6
    for ratio in (0.01, 0.999):
        assert 0 < int(ratio * 1000) < 1000
        with pytest.raises(ValueError, match="mask_ratio"):
            tube_masks(1, (1, 2, 2), ratio / 100, torch.Generator())


def test_batches_do_not_depend_on_the_number_of_processes(config: MaskedConfig) -> None:
    stage = MaskedStage(config)
    clips, masks = stage.batch(3, 0, 1)
    parts = [stage.batch(3, rank, 2) for rank in range(2)]
    for whole, index in ((clips, 0), (masks, 1)):
        assert torch.equal(
            torch.cat([p[index] for p in parts]), torch.cat([whole[::2], whole[1::2]])
        )
    assert not torch.equal(stage.batch(4, 0, 1)[1], masks)


def hidden_patches(clips: Tensor, masks: Tensor, normalised: bool) -> Tensor:
    """What a VideoMAE should predict, written plainly: (B, hidden, 2 · 4 · 4 · 3)."""
    rows = []
    for clip, mask in zip((clips + 1) / 2, masks, strict=True):
        targets = []
        for place in mask.nonzero().flatten().tolist():
            t, y, x = place // 16, place % 16 // 4, place % 4
            tubelet = clip[:, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            patch = tubelet.permute(1, 2, 3, 0).reshape(-1, 3)
            if normalised:
                patch = (patch - patch.mean(0)) / (patch.std(0) + 1e-6)
            targets.append(patch.flatten())
        rows.append(torch.stack(targets))
    return torch.stack(rows)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_that_of_the_hidden_patches(config: MaskedConfig, normalised: bool) -> None:
    stage = MaskedStage(changed(config, normalise_targets=normalised))
    model: Any = stage.model.eval()
    clips = torch.rand(3, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masks = stage.batch(0, 0, 1)[1][:3]
    loss, terms = stage.loss(model, (clips, masks), torch.Generator())
    out = model(normalise(clips).transpose(1, 2), bool_masked_pos=masks).logits
    expected = (out - hidden_patches(clips, masks, normalised)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert list(terms) == ["masked_loss"]


@pytest.mark.parametrize(
    "change",
    [
        {"mask_ratio": 0.5}, {"normalise_targets": False}, {"model": {"patch": 8, "heads": 4}},
        {"model": {"patch": 4, "tubelet": 4}},
    ],
)  # fmt: skip
def test_every_setting_bites(config: MaskedConfig, change: dict[str, Any]) -> None:
    def first(config: MaskedConfig) -> float:
        stage = MaskedStage(config)
        return float(stage.loss(stage.model, stage.batch(0, 0, 1), torch.Generator())[0].detach())

    assert first(config) == first(config)
    assert first(changed(config, **change)) != first(config)


def test_it_learns_and_its_encoder_is_exported(config: MaskedConfig, tmp_path: Path) -> None:
    result = train_config(config, tmp_path / "run")
    rows = [json.loads(s) for s in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["masked_loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.05
    scores = result["validation"]
    assert set(scores) == {"masked_loss", "probe", "probe_pixels", "probe_untrained"}
    assert scores["masked_loss"] < 1 and 0.5 <= scores["probe"] <= 1

    encoder = load_encoder(EncoderConfig(encoder="videomae-nano", path=tmp_path / "run" / "model"))
    assert encoder.num_layers == 2 and encoder.grid(2, 8) == (4, 4, 4)
    assert result["parameters"] < sum(p.numel() for p in masked_model(config).parameters())
    again = MaskedStage(config)
    model = train(again, config.train, tmp_path / "run", config)  # finished: returns at once
    clips = again.batch(0, 0, 1)[0]
    inner: Any = again.exported(model)
    with torch.no_grad():
        expected = inner(normalise(clips).transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(encoder.hidden(clips, [2])[0].flatten(1, 3), expected)
    assert all(p.requires_grad for p in model.parameters())  # the probe froze a copy


def test_it_is_shipped_in_half_and_read_in_float32(config: MaskedConfig, tmp_path: Path) -> None:
    stage = MaskedStage(config)
    save_model(stage.exported(stage.model), tmp_path / "half", half=True)
    save_model(stage.exported(stage.model), tmp_path / "full")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    encoder = load_videomae_nano(tmp_path / "half")
    assert {p.dtype for p in encoder.net.parameters()} == {torch.float32}
    clips = stage.batch(0, 0, 1)[0]
    (half,), (full,) = (
        load_videomae_nano(tmp_path / n).hidden(clips, [2]) for n in ("half", "full")
    )
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.02)


def test_resumed_training_ends_with_the_same_bits(config: MaskedConfig, tmp_path: Path) -> None:
    def run(steps: int, folder: str) -> nn.Module:
        settings = config.train.model_copy(update={"steps": steps, "validate_every": 0})
        now = config.model_copy(update={"train": settings})
        return train(MaskedStage(now), settings, tmp_path / folder, now)

    whole = run(4, "whole").state_dict()
    run(2, "parts")
    for name, tensor in run(4, "parts").state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_the_shipped_config_is_valid(root: Path) -> None:
    path = root / "configs" / "nano" / "videomae.yaml"
    config = load_config(MaskedConfig, path)
    assert (config.data.num_frames, config.data.size) == (16, 64)
    parts = describe(str(path))["parts"]
    assert parts[0]["parameters"] < 2_500_000
    inner: Any = masked_model(config)
    kept = sum(p.numel() for p in inner.videomae.parameters())
    assert 2 * kept < 3_000_000  # bytes in half precision


def test_the_shipped_encoder_fits_the_nano_tokenizer() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size < 3_000_000
    encoder = load_encoder(EncoderConfig(encoder="videomae-nano"))
    assert encoder.grid(encoder.num_layers, 16) == (8, 8, 8)
    assert encoder.hidden(torch.zeros(1, 3, 16, 64, 64), [1])[0].isfinite().all()
