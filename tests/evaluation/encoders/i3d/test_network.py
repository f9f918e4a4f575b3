"""The I3D: its parts against plain definitions, the whole against golden logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.encoders.i3d.network import (
    I3D,
    I3DFeatures,
    Pool,
    Unit,
    fold,
    load_i3d,
    preprocess,
    same_padding,
)


def tf_padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around x so that a plain operation on it gives TF's "SAME" result."""
    for axis, k, s in zip((2, 3, 4), kernel, stride, strict=True):
        n = x.shape[axis]
        total = max(((n + s - 1) // s - 1) * s + k - n, 0)
        pads = [0] * 6
        pads[2 * (4 - axis)], pads[2 * (4 - axis) + 1] = total // 2, total - total // 2
        x = F.pad(x, pads)
    return x


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3,) * 3, (2,) * 3), ((3,) * 3, (1,) * 3)]
)
def test_pool_pads_like_tf(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], frames: int, size: int
) -> None:
    x = torch.rand(2, 3, frames, size, size + 1)
    expected = F.max_pool3d(tf_padded(x, kernel, stride), kernel, stride)
    assert torch.equal(Pool(kernel, stride)(x), expected)
    assert torch.equal(
        Pool((2, 2, 2), (2, 2, 2))(x), F.max_pool3d(tf_padded(x, (2,) * 3, (2,) * 3), 2, 2)
    )


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("frames", [9, 16])
def test_unit_is_convolution_norm_and_relu(kernel: int, stride: int, frames: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 5, kernel, stride, bias=False)
    norm = torch.nn.BatchNorm3d(5, eps=1e-3, affine=True).eval()
    torch.nn.init.normal_(norm.bias)
    assert norm.running_mean is not None and norm.running_var is not None
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.1, 2)
    state = fold(
        {
            "u.conv3d.weight": conv.weight.detach(),
            "u.bn.bias": norm.bias.detach(),
            "u.bn.running_mean": norm.running_mean,
            "u.bn.running_var": norm.running_var,
        }
    )
    unit = Unit(3, 5, kernel, stride).requires_grad_(False)
    unit.load_state_dict({name.removeprefix("u."): tensor for name, tensor in state.items()})
    x = torch.rand(2, 3, frames, 10, 13)
    expected = norm(conv(tf_padded(x, (kernel,) * 3, (stride,) * 3))).relu()
    torch.testing.assert_close(unit(x), expected, rtol=1e-4, atol=1e-5)


def test_same_padding_puts_the_odd_one_behind() -> None:
    assert same_padding(224, 7, 2) == (2, 3)
    assert same_padding(9, 7, 2) == (3, 3)
    assert same_padding(112, 3, 2) == (0, 1)
    assert same_padding(8, 1, 1) == same_padding(112, 1, 2) == (0, 0)


def test_number_of_parameters() -> None:
    """What the checkpoint stores, less the means and variances that folding uses up."""
    folded = sum(parameter.numel() for parameter in I3D().parameters())
    units = sum(m.bias.numel() for m in I3D().modules() if isinstance(m, Unit))
    assert folded + 2 * units == 12_704_544


def test_preprocess_is_plain_bilinear() -> None:
    clips = torch.rand(2, 3, 4, 30, 50) * 2 - 1
    frame = clips[1, :, 2]
    expected = F.interpolate(frame[None], (224, 224), mode="bilinear", antialias=False)[0]
    assert torch.equal(preprocess(clips)[1, :, 2], expected)
    exact = torch.rand(1, 3, 2, 224, 224)
    assert torch.equal(preprocess(exact), exact)


@pytest.fixture(scope="module")
def network() -> I3DFeatures:
    return load_i3d()


@pytest.mark.parametrize(("name", "seed", "frames"), [("t16", 0, 16), ("t9", 1, 9), ("t17", 2, 17)])
def test_golden_logits(
    network: I3DFeatures, assets: Path, name: str, seed: int, frames: int
) -> None:
    """Another implementation's logits, to 1e-4; and the last features before them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, frames, 28, 28, 3))
    pixels = pixels.astype(np.float32).repeat(8, 2).repeat(8, 3) * np.float32(2 / 255) - 1
    clips = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)
    golden = np.load(assets / "golden" / "i3d_logits.npz")
    logits, expected = network(clips), torch.from_numpy(golden[f"{name}/logits"])
    assert logits.dtype == torch.float32 and logits.shape == (1, network.dim)
    assert (logits - expected).norm() <= 1e-4 * expected.norm()
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    if name == "t9":
        last = network.model.trunk(preprocess(clips)).mean((2, 3, 4))
        expected = torch.from_numpy(golden[f"{name}/mixed5c_mean"])
        assert (last - expected).norm() <= 1e-4 * expected.norm()


def test_a_clip_does_not_see_its_batch(network: I3DFeatures) -> None:
    clips = torch.rand(2, 3, 9, 32, 40) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        both = network(clips)
    assert torch.equal(both[1:], network(clips[1:]))
    assert network(clips[:0]).shape == (0, 400)


def test_refusals(network: I3DFeatures) -> None:
    with pytest.raises(ValueError, match="clips of 8 frames: i3d needs 9"):
        network(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, 3, F, H, W\)"):
        network(torch.zeros(3, 9, 32, 32))
