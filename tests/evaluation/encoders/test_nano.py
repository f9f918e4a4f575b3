"""The nano feature network: its contract, its files, its training and what its distances see."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from evaluation.encoders.load import load_features
from evaluation.encoders.nano import (
    SHIPPED,
    FeaturesConfig,
    FeaturesStage,
    NanoFeatures,
    NanoModelConfig,
    NanoNet,
    load_nano,
)
from evaluation.metrics.frechet import frechet_distance
from evatok.core.config import OptimizerConfig, TrainConfig, load_config
from evatok.core.errors import EvatokError
from training.loop import train
from video.dataset import DataConfig, SourceConfig
from video.writing import write_video


def moving_squares(count: int, seed: int = 0, size: int = 64) -> Tensor:
    """Clips (count, 3, 16, size, size) in [-1, 1]: coloured squares that fly over a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.full((count, 3, 16, size, size), -0.8)
    for clip in clips:
        for _ in range(6):
            colour = torch.rand(3, generator=generator) * 2 - 1
            x, y, dx, dy = (int(v) for v in torch.randint(-3, 60, (4,), generator=generator))
            for frame in range(16):
                top, left = (y + frame * dy // 16) % (size - 6), (x + frame * dx // 16) % (size - 6)
                clip[:, frame, top : top + 6, left : left + 6] = colour[:, None, None]
    return clips


@pytest.fixture
def network() -> NanoFeatures:
    torch.manual_seed(0)
    return NanoFeatures(NanoNet(["Left", "Right"]))


def test_contract_of_a_feature_network(network: NanoFeatures) -> None:
    features = network(moving_squares(3))
    assert network.name == "nano"
    assert (features.shape, features.dtype) == ((3, network.dim), torch.float32)
    assert len(network.checksum) == 64
    assert sum(weight.numel() for weight in network.net.parameters()) < 400_000


def test_a_clip_gets_the_same_vector_whatever_else_is_in_the_batch(network: NanoFeatures) -> None:
    clips = moving_squares(3)
    alone = torch.cat([network(clip[None]) for clip in clips])
    assert torch.equal(network(clips), alone)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(network(clips), alone) and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_autocast_does_not_reach_it(network: NanoFeatures) -> None:
    clips = moving_squares(2)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(clips)
    assert torch.equal(features, network(clips))


def test_other_sizes_are_resized_frame_by_frame(network: NanoFeatures) -> None:
    clips = moving_squares(2, size=96)[..., :80]  # (2, 3, 16, 96, 80)
    frames = clips.permute(0, 2, 1, 3, 4).flatten(0, 1)
    small = F.interpolate(frames, (64, 64), mode="bilinear", antialias=True)
    small = small.unflatten(0, (2, 16)).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(network(clips), network(small))


@pytest.mark.parametrize(
    "clips",
    [torch.zeros(3, 16, 64, 64), torch.zeros(1, 16, 3, 64, 64), torch.zeros(1, 3, 2, 8, 8).byte()],
)
def test_what_is_no_clip_is_refused(network: NanoFeatures, clips: Tensor) -> None:
    with pytest.raises(ValueError, match="clips must be floats of shape"):
        network(clips)


def test_too_few_frames_are_refused(network: NanoFeatures) -> None:
    assert network(torch.zeros(1, 3, 9, 64, 64)).isfinite().all()
    with pytest.raises(ValueError, match="clips of 8 frames: nano needs 9"):
        network(torch.zeros(1, 3, 8, 64, 64))


def test_saved_in_half_precision_and_read_back_in_float32(tmp_path: Path) -> None:
    net = NanoNet(["Left", "Right"], widths=(4, 6, 8, 10), dim=12)
    copy.deepcopy(net).half().save_pretrained(tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["class_names"] == ["Left", "Right"]

    read = load_features("nano", tmp_path / "net")
    assert isinstance(read, NanoFeatures)
    assert {tensor.dtype for tensor in read.net.parameters()} == {torch.float32}
    clips = moving_squares(2)
    torch.testing.assert_close(read(clips), NanoFeatures(net)(clips), atol=0.02, rtol=0.02)
    assert read.checksum == load_nano(tmp_path / "net").checksum
    assert read.checksum != NanoFeatures(NanoNet(["Left", "Right"])).checksum


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing; train one with"):
        load_nano(tmp_path)


def test_training_learns_two_classes(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    config = FeaturesConfig(
        stage="features",
        data=DataConfig(
            sources=(SourceConfig(kind="ucf101", root=root),),
            cache_dir=tmp_path / "cache",
            workers=1,
        ),
        # Fewer steps would leave the running statistics, which validation uses, behind.
        train=TrainConfig(steps=30, batch_size=4, seed=1, optimizer=OptimizerConfig(lr=3e-3)),
    )
    stage = FeaturesStage(config)
    model = train(stage, config.train, tmp_path / "run", config)
    assert isinstance(model, NanoNet)
    assert model.class_names == ["Flat", "Lines"]
    assert stage.validate(model, 30).scalars["accuracy"] == 1.0


def two_classes(root: Path) -> Path:
    """UCF-101 layout: clips with a grey square on black, and clips with white lines."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("Flat", "Lines"), 1):
        (root / name).mkdir(parents=True)
        for group in (1, 2, 8, 9, 10, 11):
            frames = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)
            for frame, picture in enumerate(frames):
                start = 3 * frame % 16 + group
                picture[start : start + 24, 8:40] = 90
                if name == "Lines":
                    picture[start % 8 :: 8] = 255
            path = f"{name}/v_{name}_g{group:02d}_c01.mp4"
            write_video(root / path, frames.numpy(), fps=15)
            lists["train" if group > 7 else "test"].append(path + f" {label}" * (group > 7))
    (root / "classInd.txt").write_text("1 Flat\n2 Lines\n")
    for split, lines in lists.items():
        (root / f"{split}list01.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_shipped_config_is_valid(root: Path) -> None:
    config = load_config(FeaturesConfig, root / "configs" / "nano" / "features.yaml")
    assert config.data.num_frames == 16
    assert config.data.size == 64


def test_shipped_weights_are_small_and_know_24_games() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size < 1_000_000
    assert len(load_nano().net.class_names) == 24


def test_distances_are_named_by_the_weights(tmp_path: Path) -> None:
    """The net of 40 games is no `nano`, and no net of ours takes a published name."""
    games = load_features("games")
    assert isinstance(games, NanoFeatures) and len(games.net.class_names) == 40
    assert games.name == "games" != load_nano().name
    games.net.save_pretrained(tmp_path)
    assert load_nano(tmp_path).name == "games"
    for name in ("i3d", "videomae-g", "Nano", ""):
        with pytest.raises(EvatokError, match=r"name|called"):
            NanoNet(["a", "b"], name=name)
        with pytest.raises(ValidationError):
            NanoModelConfig(name=name)


@pytest.mark.parametrize("degrade", ["blur", "noise", "freeze", "fade"])
def test_the_distance_grows_with_the_degradation(degrade: str) -> None:
    network, clips = load_nano(), moving_squares(48)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(clips.shape, generator=generator)
    real = network(clips)
    distances = []
    for strength in (1, 2, 3):
        if degrade == "blur":
            kernel = 2 * strength + 1
            worse = F.avg_pool3d(clips, (1, kernel, kernel), 1, (0, strength, strength))
        elif degrade == "noise":
            worse = clips + 0.1 * strength * noise
        elif degrade == "freeze":
            held = 2**strength + 1  # one frame in so many is held
            worse = clips[:, :, [frame - frame % held for frame in range(16)]]
        else:
            worse = clips * (1 - 0.2 * strength)
        distances.append(frechet_distance(real, network(worse)))
    assert 0 < distances[0] < distances[1] < distances[2], distances
