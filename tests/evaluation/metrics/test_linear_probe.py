"""The linear probe: an ordinary ridge regression, and what it can and cannot see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluation.metrics.linear_probe import linear_probe, mean_features, pixel_features


def rows(seed: int, count: int, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Three classes whose means differ along two of the features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = torch.randn(count, dim, generator=generator)
    x[:, 0] += 4.0 * (labels == 1)
    x[:, 3] -= 4.0 * (labels == 2)
    return x, labels


@pytest.mark.parametrize("dim", [6, 90])
def test_it_is_ridge_regression_in_plain_form(dim: int) -> None:
    """Against the normal equations, with fewer and with more features than rows."""
    (x, labels), (y, truth) = rows(0, 40, dim), rows(1, 200, dim)
    a = ((x - x.mean(0)) / x.std(0)).double()
    b = ((y - x.mean(0)) / x.std(0)).double()
    targets = torch.eye(3).double()[labels]
    square = a.T @ a / dim + 0.3 * len(a) * torch.eye(dim).double()
    weights = torch.linalg.solve(square, a.T @ (targets - targets.mean(0)))
    scores = b @ weights / dim + targets.mean(0)
    expected = (scores.argmax(1) == truth).double().mean()
    assert linear_probe(x, labels, y, truth, 0.3) == pytest.approx(float(expected))


def test_it_finds_what_is_there_and_not_what_is_not() -> None:
    (x, labels), (y, truth) = rows(0, 90), rows(1, 300)
    assert linear_probe(x, labels, y, truth) > 0.9
    assert abs(linear_probe(x[:, [1, 2, 4, 5]], labels, y[:, [1, 2, 4, 5]], truth) - 1 / 3) < 0.12


def test_scale_shift_and_dead_features_do_not_matter() -> None:
    (x, labels), (y, truth) = rows(0, 60), rows(1, 100)
    plain = linear_probe(x, labels, y, truth)
    scale, shift = torch.logspace(-3, 3, 6), torch.arange(6) * 10.0
    assert linear_probe(x * scale + shift, labels, y * scale + shift, truth) == plain
    dead = torch.full((100, 1), 7.0)
    assert (
        linear_probe(torch.cat([x, dead[:60]], 1), labels, torch.cat([y, dead], 1), truth) == plain
    )


def test_the_ridge_bites() -> None:
    (x, labels), (y, truth) = rows(0, 12, 200), rows(1, 300, 200)
    assert linear_probe(x, labels, y, truth, 1e-6) != linear_probe(x, labels, y, truth, 100.0)


def test_refusals() -> None:
    (x, labels), (y, truth) = rows(0, 12), rows(1, 6)
    with pytest.raises(ValueError, match=r"\(12, 6\) and \(6, 5\) are not"):
        linear_probe(x, labels, y[:, 1:], truth)
    with pytest.raises(ValueError, match="11 and 6 labels for 12 and 6 rows"):
        linear_probe(x, labels[1:], y, truth)
    with pytest.raises(ValueError, match="two classes or more"):
        linear_probe(x, labels * 0, y, truth * 0)


def test_pooled_features() -> None:
    clips = torch.rand(5, 3, 4, 8, 8)
    pixels = pixel_features(clips, (2, 4, 4))
    assert pixels.shape == (5, 96)
    torch.testing.assert_close(pixels[1, 0], clips[1, 0, :2, :2, :2].mean())

    class Encoder:
        name, checksum, num_layers = "toy", "", 2

        def grid(self, layer: int, num_frames: int) -> tuple[int, int, int]:
            return num_frames, 8, 8

        def width(self, layer: int) -> int:
            return 3

        def hidden(self, clips: Tensor, layers: list[int]) -> list[Tensor]:
            return [layer * clips.movedim(1, -1) for layer in layers]

    found = mean_features(Encoder(), clips, 2, part=2)  # type: ignore[arg-type]
    torch.testing.assert_close(found, 2 * clips.mean((2, 3, 4)))
