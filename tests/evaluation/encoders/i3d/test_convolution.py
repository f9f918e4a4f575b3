"""The I3D's convolutions, by C code where the processor has AMX and by PyTorch elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.encoders.i3d import convolution
from evaluation.encoders.i3d.network import Unit, same_padding


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Unit:
    torch.manual_seed(0)
    made = Unit(inputs, outputs, kernel, stride).requires_grad_(False)
    made.weight.normal_(std=(2 / inputs / kernel**3) ** 0.5)
    made.bias.normal_(std=0.1)
    return made


def by_float64(made: Unit, x: Tensor, size: bool = False) -> Tensor:
    """The result, or the sum of the sizes of all its terms."""
    pads = [same_padding(n, made.kernel, made.stride) for n in x.shape[2:]]
    x = F.pad(x.double(), [p for pair in reversed(pads) for p in pair])
    weight, bias = made.weight.double(), made.bias.double()
    if size:
        return F.conv3d(x.abs(), weight.abs(), bias.abs(), made.stride)
    return F.conv3d(x, weight, bias, made.stride).relu()


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "shape"),
    [
        (64, 192, 3, 1, (8, 56, 56)),
        (96, 208, 3, 1, (4, 14, 14)),
        (16, 48, 3, 1, (2, 7, 7)),
        (24, 64, 3, 1, (3, 9, 5)),
        (32, 33, 3, 1, (1, 1, 1)),
        (40, 16, 3, 1, (5, 3, 70)),
        (3, 64, 7, 2, (9, 64, 64)),
        (3, 64, 7, 2, (16, 10, 33)),
        (3, 20, 7, 2, (10, 224, 224)),
    ],
)
def test_results_are_those_of_float64_to_the_last_digits_of_float32(
    inputs: int, outputs: int, kernel: int, stride: int, shape: tuple[int, int, int]
) -> None:
    made, x = unit(inputs, outputs, kernel, stride), torch.randn(2, inputs, *shape)
    error = (made(x).double() - by_float64(made, x)).abs()
    assert bool((error < 5e-7 * by_float64(made, x, size=True)).all())


def test_results_do_not_depend_on_threads_batch_or_strides() -> None:
    made, x = unit(24, 64, 3), torch.randn(3, 24, 4, 20, 20)
    together = made(x)
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            alone = torch.cat([made(clip[None]) for clip in x])
        finally:
            torch.set_num_threads(before)
        if convolution.serves(x):
            assert torch.equal(alone, together)
        assert torch.allclose(alone, together, atol=1e-5)
    last = x.to(memory_format=torch.channels_last_3d)
    assert torch.allclose(made(last), together, atol=1e-5)


def test_changed_weights_are_used() -> None:
    made, x = unit(16, 32, 3), torch.randn(1, 16, 3, 8, 8)
    before = made(x)
    made.weight.mul_(2)
    made.bias.mul_(2)
    assert torch.allclose(made(x), 2 * before, atol=1e-5)


def test_gradients_and_other_types_are_pytorchs() -> None:
    made, x = unit(16, 32, 3), torch.randn(1, 16, 3, 8, 8, requires_grad=True)
    assert not convolution.serves(x) and not convolution.serves(x.detach().double())
    made(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_parts_add_up_to_every_bit() -> None:
    x = torch.randn(10_000) * 10 ** torch.linspace(-6, 6, 10_000)
    assert torch.equal(convolution._parts(x).float().sum(0), x)
