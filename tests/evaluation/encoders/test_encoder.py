"""Frozen encoders: Transformers' own features, exact pixels, gradients that reach the clips."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.encoders.encoder import EncoderConfig, VideoEncoder, read_normalisation
from evaluation.encoders.i3d.network import I3D, I3DEncoder, I3DFeatures, preprocess
from evaluation.encoders.i3d.weights import read_weights
from evaluation.encoders.load import load_encoder
from evaluation.encoders.videomae import SHIPPED, load_videomae_nano

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
assert spec is not None and spec.loader is not None
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def clips(frames: int = 8, size: int = 16, batch: int = 2) -> Tensor:
    return (
        torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(3)) - 0.4
    )


def normalised(x: Tensor) -> Tensor:
    """(B, F, 3, H, W) as the tiny preprocessors say."""
    mean = torch.tensor(tiny.MEAN).view(1, 1, 3, 1, 1)
    std = torch.tensor(tiny.STD).view(1, 1, 3, 1, 1)
    return ((x.transpose(1, 2) + 1) * 0.5 - mean) / std


def random_i3d() -> I3DEncoder:
    """Untrained weights of the real shapes, scaled so that activations neither die nor explode."""
    torch.manual_seed(0)
    weights = {}
    for name, tensor in I3D().state_dict().items():
        layer, _, part = name.rpartition(".")
        fan_in = tensor[0].numel() if part == "weight" else 0
        random = torch.randn_like(tensor) * ((2 / fan_in) ** 0.5 if fan_in else 0.1)
        weights[f"{layer}.conv3d.{part}"] = random
    return I3DEncoder(weights, 32)


@pytest.mark.parametrize("pooled", [False, True])
def test_videomae_is_transformers_own(tmp_path: Path, pooled: bool) -> None:
    """Of a folder as pretraining leaves it; a pooling model has no final norm."""
    model = tiny.videomae(tmp_path, use_mean_pooling=pooled).videomae
    encoder = load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))
    assert encoder.name == "videomae" and encoder.num_layers == 3
    with torch.no_grad():
        states = model(normalised(clips()), output_hidden_states=True)
    last, second = encoder.hidden(clips(), [3, 2])
    assert last.shape == second.shape == (2, 4, 2, 2, 24) == (2, *encoder.grid(2, 8), 24)
    torch.testing.assert_close(last.flatten(1, 3), states.last_hidden_state)
    torch.testing.assert_close(second.flatten(1, 3), states.hidden_states[2])
    assert not torch.allclose(last, second)


def test_vjepa2_is_transformers_own(tmp_path: Path) -> None:
    model = tiny.vjepa2(tmp_path)
    encoder = load_encoder(EncoderConfig(encoder="vjepa2-l", path=tmp_path))
    x = clips(4, 32)
    with torch.no_grad():
        states = model(normalised(x), skip_predictor=True, output_hidden_states=True)
    first, last = encoder.hidden(x, [1, 3])
    assert first.shape == (2, 2, 4, 4, 24) == (2, *encoder.grid(1, 4), encoder.width(1))
    torch.testing.assert_close(last.flatten(1, 3), states.last_hidden_state)
    torch.testing.assert_close(first.flatten(1, 3), states.hidden_states[1])


def test_names_of_old_checkpoints_are_read(tmp_path: Path) -> None:
    """VideoMAE-B as published names its biases q_bias and v_bias; none may be left random."""
    model = tiny.videomae(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    renamed = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor
        for name, tensor in tensors.items()
    }
    assert any(name.endswith("q_bias") for name in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    encoder: Any = load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))
    for name, tensor in model.videomae.state_dict().items():
        assert torch.equal(encoder.net.state_dict()[name], tensor), name


def encoders(tmp_path: Path) -> dict[str, tuple[VideoEncoder, Tensor]]:
    tiny.videomae(tmp_path / "videomae")
    tiny.vjepa2(tmp_path / "vjepa2")
    return {
        "videomae": (
            load_encoder(EncoderConfig(encoder="videomae", path=tmp_path / "videomae")),
            clips(8, 20),
        ),
        "vjepa2": (
            load_encoder(EncoderConfig(encoder="vjepa2-l", path=tmp_path / "vjepa2")),
            clips(4, 20),
        ),
        "i3d": (random_i3d(), clips(5, 20, 1)),
    }


@pytest.mark.parametrize("name", ["videomae", "vjepa2", "i3d"])
def test_gradients_reach_the_clips_and_only_them(tmp_path: Path, name: str) -> None:
    """Against finite differences, through resizing and all layers."""
    encoder, x = encoders(tmp_path)[name]
    layers = [1, encoder.num_layers]
    x = x.clone().requires_grad_()
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(f.shape, generator=generator) for f in encoder.hidden(x, layers)]

    def value(at: Tensor) -> Tensor:
        found = zip(encoder.hidden(at, layers), directions, strict=True)
        return sum(((f * d).double().mean() for f, d in found), torch.zeros(()).double())

    value(x).backward()
    assert x.grad is not None
    net: Any = encoder
    assert all(p.grad is None and not p.requires_grad for p in net.model.parameters())
    along = x.grad / x.grad.norm()
    step = 1e-2
    with torch.no_grad():
        slope = (value(x + step * along) - value(x - step * along)) / (2 * step)
    assert float(slope) == pytest.approx(float(x.grad.norm()), rel=0.05)
    assert float(slope) > 0


def test_i3d_gradients_are_those_of_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's convolution and the ReLU in place give F.conv3d's gradients."""
    encoder, x = random_i3d(), clips(9, 32).requires_grad_()
    layers = [1, 3, 7, 16]

    def gradient() -> tuple[list[Tensor], Tensor]:
        found = encoder.hidden(x, layers)
        total = torch.stack([f.square().mean() for f in found]).sum()
        return [f.detach() for f in found], torch.autograd.grad(total, x)[0]

    fast, fast_gradient = gradient()

    def plain(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: list[int]) -> Tensor:
        return F.conv3d(x, weight, bias, stride, padding) + 0  # a copy: relu_ spares the original

    monkeypatch.setattr("evaluation.encoders.i3d.network.conv3d", plain)
    slow, slow_gradient = gradient()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fast_gradient, slow_gradient, rtol=1e-3, atol=1e-4 * float(slow_gradient.abs().max())
    )


def test_i3d_grids_and_widths() -> None:
    encoder = random_i3d()
    x = clips(10, 32, 1)
    every = list(range(1, encoder.num_layers + 1))
    for layer, features in zip(every, encoder.hidden(x, every), strict=True):
        expected = (1, *encoder.grid(layer, 10), encoder.width(layer))
        assert features.shape == expected, (layer, encoder.model.layers[layer - 1])


def test_i3d_encoder_is_the_feature_network() -> None:
    weights = read_weights()
    encoder, network = load_encoder(EncoderConfig(encoder="i3d")), I3DFeatures(weights)
    x = clips(9, 40, 1)
    (last,) = encoder.hidden(x, [16])
    expected = network.model.trunk(preprocess(x)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(last, expected)
    assert encoder.checksum == network.checksum
    assert encoder.grid(7, 16) == (8, 28, 28)
    small = load_encoder(EncoderConfig(encoder="i3d", size=64))
    assert small.grid(7, 16) == (8, 8, 8) and small.hidden(x, [7])[0].shape == (1, 5, 8, 8, 480)


def test_frames_are_resized_whole(tmp_path: Path) -> None:
    tiny.videomae(tmp_path)
    encoder: Any = load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))
    x = torch.rand(2, 3, 8, 30, 50) * 2 - 1
    frame = F.interpolate(x[1, :, 5][None], (16, 16), mode="bilinear", antialias=True)
    expected = (frame[0] + 1) / 2
    for colour in range(3):
        expected[colour] = (expected[colour] - tiny.MEAN[colour]) / tiny.STD[colour]
    torch.testing.assert_close(encoder.pixels(x)[1, :, 5], expected)


def test_the_nano_encoder_takes_imagenet_pixels(tmp_path: Path) -> None:
    """No preprocessor's file is shipped: the training loss of the class assumes these values."""
    tiny.videomae(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    encoder: Any = load_encoder(EncoderConfig(encoder="videomae-nano", path=tmp_path))
    assert encoder.name == "videomae-nano"
    white = encoder.pixels(torch.ones(1, 3, 8, 16, 16))[0, :, 0, 0, 0]
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white, expected)


def test_the_checksum_knows_the_weights(tmp_path: Path) -> None:
    tiny.videomae(tmp_path / "a")
    tiny.videomae(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "layer.1." in name)].add_(1e-3)
    save_file(tensors, file, metadata={"format": "pt"})
    a, again, b = (
        load_encoder(EncoderConfig(encoder="videomae", path=tmp_path / name)).checksum
        for name in ("a", "a", "b")
    )
    assert a == again != b


def test_what_an_encoder_does_not_take(tmp_path: Path) -> None:
    (videomae, x), (vjepa2, _), (i3d, _) = encoders(tmp_path).values()
    for layers in ([0], [4], [1, -1]):
        with pytest.raises(ValueError, match="videomae has layers 1 to 3, not"):
            videomae.hidden(x, layers)
    with pytest.raises(ValueError, match="no layer of i3d"):
        i3d.hidden(clips(), [])
    with pytest.raises(ValueError, match="videomae takes clips of 8 frames, not 4"):
        videomae.hidden(clips(4), [1])
    with pytest.raises(ValueError, match="vjepa2-l takes clips of 2 · n frames, not 5"):
        vjepa2.hidden(clips(5), [1])
    with pytest.raises(ValueError, match="clips must be floats"):
        videomae.hidden(x.byte(), [1])
    with pytest.raises(ValueError, match="videomae has a size of its own"):
        load_encoder(EncoderConfig(encoder="videomae", path=tmp_path / "videomae", size=64))


def test_weights_are_never_left_random(tmp_path: Path) -> None:
    tiny.videomae(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "layer.1." in name)
    save_file({k: v for k, v in tensors.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of a VideoMAEModel are not in it: encoder\.l"):
        load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))


def test_missing_files_say_how_to_get_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("evaluation.encoders.encoder.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(FileNotFoundError, match="hf download facebook/vjepa2-vitl-fpc64-256"):
        load_encoder(EncoderConfig(encoder="vjepa2-l"))
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: `hf download MCG-NJU"):
        load_encoder(EncoderConfig(encoder="videomae", path=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"evatok train configs/nano/videomae\.yaml"):
        load_encoder(EncoderConfig(encoder="videomae-nano", path=tmp_path))
    with pytest.raises(FileNotFoundError, match="it says how pixels are normalised"):
        read_normalisation(tmp_path)


def test_normalisation_is_that_of_three_colours(tmp_path: Path) -> None:
    file = tmp_path / "video_preprocessor_config.json"
    (tmp_path / "preprocessor_config.json").write_text("{}")  # the other name comes first
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}))
    assert read_normalisation(tmp_path) == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    for wrong in ({}, {"image_mean": 1, "image_std": 1}, {"image_mean": [1], "image_std": [1]}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="image_mean"):
            read_normalisation(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 10**6),
        ("intermediate_size", "x"),
        ("num_hidden_layers", 10**8),
        ("image_size", 10**5),
        ("image_size", 2048),
        ("num_attention_heads", 0),
        ("patch_size", 0),
        ("layer_norm_eps", None),
    ],
)
def test_config_of_another_size(key: str, value: object, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=r"copy the folder anew|no weights of a VideoMAEModel"):
        load_videomae_nano(tmp_path / "m")


def test_encoder_with_values_that_are_not_finite(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        load_videomae_nano(tmp_path / "m")
