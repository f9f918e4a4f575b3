"""Alignment: the cosine by hand, grids that fit exactly, and a tokenizer that stays itself."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.config import load_config
from evatok.workflows.train import train_config
from tokenizer.losses.alignment import (
    AlignmentConfig,
    AlignmentHead,
    Teacher,
    align,
    alignment_loss,
    make_teacher,
    matched,
    tokenizer_of,
)
from tokenizer.model import VideoTokenizer
from tokenizer.training.tokenizer_stage import ProxyConfig, TokenizerStage
from training.loop import train
from training.runs import checkpoint
from video.writing import write_video

spec = importlib.util.spec_from_file_location("frozen", Path(__file__).parents[1] / "frozen.py")
assert spec is not None and spec.loader is not None
frozen = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frozen)

ON = {"encoder": "videomae-nano", "weight": 0.7, "layer": 1}


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy encoder in the place of whatever the settings name."""
    toy = frozen.ToyEncoder()
    monkeypatch.setattr("tokenizer.losses.alignment.load_encoder", lambda config: toy)
    return toy


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A toy proxy on two videos; decoder grid 3 × 2 × 2, the toy encoder's is 6 × 4 × 4."""
    for number in range(2):
        frames = torch.randint(0, 255, (14, 16, 16, 3), dtype=torch.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames)
    former = {"width": 24, "layers": 2, "heads": 2}
    model = {"levels": [1, 2], "num_frames": 12, "size": 16, "codebook_size": 16}
    return {
        "stage": "proxy",
        "data": {
            "sources": [{"kind": "folder", "root": tmp_path / "videos"}],
            "num_frames": 12, "size": 16, "cache_dir": tmp_path / "cache", "workers": 1,
        },
        "model": model | {"encoder": former, "decoder": former},
        "validation_clips": 2,
        "train": {"steps": 4, "batch_size": 2, "save_every": 2, "validate_every": 4,
                  "schedule": {"name": "constant"}},
    }  # fmt: skip


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_the_loss_is_minus_the_mean_cosine() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0], [1.0, 1.0]]).view(1, 1, 2, 2, 2)
    b = torch.tensor([[5.0, 0.0], [4.0, 3.0], [0.0, 7.0], [1.0, 0.0]]).view(1, 1, 2, 2, 2)
    by_hand = -(1 + 24 / 25 - 1 + 1 / math.sqrt(2)) / 4
    assert float(alignment_loss(a, b)) == pytest.approx(by_hand)
    assert float(alignment_loss(a, 3 * a)) == pytest.approx(-1)
    with pytest.raises(ValueError, match=r"φ gives \(1, 1, 2, 2, 2\), the teacher \(1, 2, 2, 2\)"):
        alignment_loss(a, b[0])


@pytest.mark.parametrize(
    ("teacher", "student", "grid", "cells"),
    [
        ((8, 16, 16), (4, 16, 16), (8, 16, 16), (2, 1, 1)),  # V-JEPA 2-L at the paper's size
        ((8, 8, 8), (4, 8, 8), (8, 8, 8), (2, 1, 1)),  # nano
        ((4, 8, 8), (4, 8, 8), (4, 8, 8), (1, 1, 1)),
        ((8, 14, 14), (4, 16, 16), (8, 16, 16), (2, 1, 1)),  # VideoMAE-B: rows and columns
        ((2, 7, 7), (4, 8, 8), (4, 8, 8), (1, 1, 1)),
    ],
)
def test_grids_are_matched_or_refused(teacher: Any, student: Any, grid: Any, cells: Any) -> None:
    assert matched(teacher, student, "resample") == (grid, cells)
    if grid == teacher:
        assert matched(teacher, student, "depatchify") == (grid, cells)
    else:
        with pytest.raises(ValueError, match=r"is no multiple of the decoder's .*match: resample"):
            matched(teacher, student, "depatchify")


def test_depatchify_puts_each_cell_in_its_place() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(4, 5, (2, 1, 3))
    x = torch.randn(2, 3, 2, 2, 4)
    out = head(x)
    assert out.shape == (2, 6, 2, 6, 5)
    assert head.depatchify_head is not None
    y = head.mlp_out(F.silu(head.mlp_mid(F.silu(head.mlp_in(x[1, 2, 0, 1])))))
    emitted = head.depatchify_head(y).view(2, 1, 3, 5)
    torch.testing.assert_close(out[1, 4:6, 0:1, 3:6], emitted)
    assert AlignmentHead(4, 5, (1, 1, 1)).depatchify_head is None
    count = sum(p.numel() for p in AlignmentHead(768, 768, (1, 1, 1)).parameters())
    assert round(count / 1e6, 2) == 14.16  # million: GigaTok's count of it


def test_the_teacher_is_resampled_only_when_asked(
    encoder: Any, clips: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = AlignmentConfig.model_validate(ON)
    plain = make_teacher(config, 12, (3, 2, 2))
    torch.testing.assert_close(plain(clips), encoder.hidden(clips, [3])[0])
    assert plain.cells == (2, 2, 2) and "resampled" not in caplog.text
    with pytest.raises(ValueError, match="6 × 4 × 4 is no multiple of the decoder's 3 × 3 × 3"):
        make_teacher(config, 12, (3, 3, 3))
    resampling = AlignmentConfig.model_validate(ON | {"match": "resample", "teacher_layer": 2})
    teacher = make_teacher(resampling, 12, (3, 3, 3))
    assert "toy layer 2 (6 × 4 × 4 cells, resampled to 6 × 3 × 3); 2 × 1 × 1" in caplog.text
    expected = F.interpolate(
        encoder.hidden(clips, [2])[0].permute(0, 4, 1, 2, 3), (6, 3, 3), mode="trilinear"
    ).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(teacher(clips), expected)


def test_tapping_changes_nothing_and_keeps_the_order(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor
) -> None:
    """Features come clip by clip in the order of the batch, as from each clip alone."""
    plain, features = model(clips, assignment), model(clips, assignment, feature_layer=1)
    assert plain.features is None
    assert torch.equal(plain.clips, features.clips)
    assert torch.equal(plain.tokens.ids, features.tokens.ids)
    assert features.features.shape == (5, 3, 2, 2, 32)
    for row in range(5):
        alone = model(clips[row : row + 1], assignment[row : row + 1], feature_layer=1).features
        torch.testing.assert_close(features.features[row], alone[0])
    last = model(clips, assignment, feature_layer=2).features
    decoded = model.patch_head(model.decoder.norm_out(last.flatten(1, 3)))
    torch.testing.assert_close(
        model.pixels(decoded), plain.clips
    )  # the last layer, before its norm


def test_gradients_reach_the_layers_below_the_tap_and_phi(
    encoder: Any, model: VideoTokenizer, clips: Tensor, assignment: Tensor
) -> None:
    teacher = Teacher(encoder, 3, (6, 4, 4), (2, 2, 2), 10)
    aligned = align(model.train(), teacher, 1)
    alignment_loss(aligned(clips, assignment).features, teacher(clips)).backward()
    assert all(p.grad is not None and p.grad.any() for p in aligned.alignment.parameters())
    below, above = model.decoder.layers
    assert all(p.grad is not None for p in below.parameters())
    assert all(p.grad is None for p in above.parameters())
    assert model.patch_in.weight.grad is not None and model.patch_in.weight.grad.any()
    assert all(p.grad is None for p in encoder.net.parameters())
    with pytest.raises(ValueError, match=r"alignment\.layer 3: the decoder has layers 1 to 2"):
        align(model, teacher, 3)


def test_weight_0_builds_nothing(settings: dict[str, Any], monkeypatch: Any) -> None:
    def refuse(config: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("tokenizer.losses.alignment.load_encoder", refuse)
    stage = TokenizerStage(ProxyConfig.model_validate(settings | {"alignment": {"layer": 99}}))
    assert isinstance(stage.model, VideoTokenizer) and stage.teacher is None
    _, terms = stage.loss(stage.model, stage.batch(0, 0, 1), torch.Generator())
    assert "alignment" not in terms
    assert stage.exported(stage.model) is stage.model


def test_every_setting_bites(settings: dict[str, Any], encoder: Any) -> None:
    """Loss of the first step: the weight scales the term, layers and match change it."""

    def first(**changes: Any) -> tuple[float, float]:
        config = ProxyConfig.model_validate(settings | {"alignment": ON | changes})
        stage = TokenizerStage(config)
        with torch.no_grad():  # all layers of a fresh Q-Former are identities
            for parameter in stage.tokenizer.decoder.parameters():
                parameter.add_(torch.sin(torch.arange(parameter.numel())).view_as(parameter))
        total, terms = stage.loss(stage.model, stage.batch(0, 0, 1), torch.Generator())
        return float(total.detach()), float(terms["alignment"])

    total, term = first()
    assert -1 < term < 1
    doubled, same = first(weight=1.4)
    assert same == term and doubled - total == pytest.approx(0.7 * term, abs=1e-5)
    assert first(layer=2)[1] != term
    assert first(teacher_layer=1)[1] != term
    assert first(match="resample") == (total, term)  # the grids fit: nothing to resample
    encoder.cells = (6, 3, 3)
    with pytest.raises(ValueError, match="no multiple"):
        first()
    assert first(match="resample")[1] != term


def test_the_tokenizer_starts_the_same_with_and_without(
    settings: dict[str, Any], encoder: Any
) -> None:
    plain = TokenizerStage(ProxyConfig.model_validate(settings)).tokenizer.state_dict()
    aligned = TokenizerStage(ProxyConfig.model_validate(settings | {"alignment": ON}))
    for name, tensor in aligned.tokenizer.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_it_is_trained_saved_resumed_and_not_exported(
    settings: dict[str, Any], encoder: Any, tmp_path: Path
) -> None:
    config = ProxyConfig.model_validate(settings | {"alignment": ON})
    result = train_config(config, tmp_path / "run")
    rows = log_of(tmp_path / "run")
    assert all("alignment" in row for row in rows if row["kind"] == "train")
    exported = VideoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert result["parameters"] == sum(p.numel() for p in exported.parameters())

    path = checkpoint.latest(tmp_path / "run")
    assert path is not None
    saved = checkpoint.load(path).model
    phi = [name for name in saved if name.startswith("alignment.")]
    assert len(phi) == 8 and not any("encoder.net" in name or "teacher" in name for name in saved)
    half = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    train(TokenizerStage(half), half.train, tmp_path / "again", half)
    again = TokenizerStage(config)
    before = {k: v.clone() for k, v in again.model.state_dict().items() if "alignment" in k}
    train(again, config.train, tmp_path / "again", config)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    assert all(not torch.equal(before[name], saved[name]) for name in phi)
    assert all(
        torch.equal(saved[f"tokenizer.{name}"], tensor)
        for name, tensor in exported.state_dict().items()
    )


def test_alignment_is_learned(encoder: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    alone = {"l1": 0.0, "codebook": 0.0, "commitment": 0.0, "entropy": 0.0}
    train_settings = {"steps": 60, "batch_size": 2, "save_every": 0, "validate_every": 0,
                      "log_every": 1, "optimizer": {"lr": 3e-3}}  # fmt: skip
    changes = {"alignment": ON, "loss": alone | {"l2": 1e-3}, "train": train_settings}
    config = ProxyConfig.model_validate(settings | changes)
    model = train(TokenizerStage(config), config.train, tmp_path / "run", config)
    assert tokenizer_of(model) is not model
    rows = log_of(tmp_path / "run")
    assert rows[0]["alignment"] > -0.3 and rows[-1]["alignment"] < rows[0]["alignment"] - 0.4


def test_settings_are_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "alignment.yaml"
    file.write_text("encoder: i3d\nweight: 0.7\nlayer: 2\nteacher_layer: 7\nsize: 64\n")
    config = load_config(AlignmentConfig, file)
    assert (config.encoder, config.weight, config.teacher_layer) == ("i3d", 0.7, 7)
    assert AlignmentConfig().weight == 0 and AlignmentConfig().encoder == "vjepa2-l"
    file.write_text("encoder: dino\n")
    with pytest.raises(ValueError, match="encoder"):
        load_config(AlignmentConfig, file)
