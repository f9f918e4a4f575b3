"""A layer in training as compiled C code against `QFormerLayer`, and a tokenizer that uses it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tokenizer.attention.batch_layout import BlockEnds
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.cpu import layer as cpu_layer
from tokenizer.cpu.layer import is_for, trained_layer
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig, QFormerLayer, padded_layer

CELLS = 5


def setting(width: int, heads: int, clips: int) -> tuple[QFormerLayer, ClipGroups]:
    torch.manual_seed(0)
    layer = QFormerLayer(width, heads)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return layer, ClipGroups.from_assignment(torch.randint(1, 9, (clips, 3)))


def gradients(out: Tensor, inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.usefixtures("tiles_or_not")
@pytest.mark.parametrize(("width", "heads", "clips"), [(32, 2, 3), (96, 4, 1), (64, 1, 20)])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_it_is_the_layer(width: int, heads: int, clips: int, is_decoder: bool) -> None:
    """No further from float32 than twice what PyTorch under autocast is."""
    layer, groups = setting(width, heads, clips)
    cells = torch.full_like(groups.counts, CELLS)
    ends, sides = (
        [BlockEnds.from_counts(groups.counts), BlockEnds.from_counts(cells)],
        [groups.tokens],
    )
    sides.append(groups.grid(CELLS))
    own, other = (1, 0) if is_decoder else (0, 1)
    rows = [int(e.ends[-1, -1]) for e in ends]
    x, references = torch.randn(rows[own], width), torch.randn(rows[other], width)
    weight = torch.randn(rows[own], width)
    inputs = [x.requires_grad_(), references.requires_grad_(), *layer.parameters()]
    both = ends[own], ends[other]
    found = gradients(trained_layer(layer, x, references, both, heads, 1e-5), inputs, weight)
    plain = []
    for is_bf16 in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            out = padded_layer(layer, x, references, sides[own], sides[other])
        plain.append(gradients(out, inputs, weight))
    for a, b, exact in zip(found, *plain, strict=True):
        assert a.dtype == torch.float32 and a.shape == exact.shape
        assert (a - exact).norm() <= 2 * (b.float() - exact).norm() + 1e-3 * exact.norm()


def test_it_does_not_depend_on_threads() -> None:
    layer, groups = setting(32, 2, 60)
    ends = BlockEnds.from_counts(groups.counts)
    x = torch.randn(groups.num_rows, 32, requires_grad=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = trained_layer(layer, x, x, (ends, ends), 2, 1e-5)
        found.append(gradients(out, [x, *layer.parameters()], out.detach()))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_tokenizer_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layer, "has_tiles", lambda _: True)
    torch.manual_seed(0)
    size = QFormerConfig(width=32, layers=2, heads=2)
    config = TokenizerConfig(
        levels=(1, 2, 4), num_frames=8, size=16, encoder=size, decoder=size, codebook_size=2
    )
    model = VideoTokenizer(config).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    clips = torch.rand(6, 3, 8, 16, 16) * 2 - 1
    assignment = torch.tensor([[1, 4], [2, 2], [4, 1], [1, 4], [4, 4], [2, 1]])
    kept = []
    for is_compiled, precision in ((True, True), (False, True), (False, False)):
        model.is_compiled = is_compiled
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            loss, _ = tokenizer_loss(model(clips, assignment), clips, LossConfig(l2=1.0, entropy=0))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        kept.append((loss.detach(), gradient))
    (loss, gradient), (plain, of_plain), (exact, of_exact) = kept
    assert (loss - exact).abs() <= 2 * (plain - exact).abs() + 2e-3 * exact.abs()
    assert (gradient - of_exact).norm() <= 2 * (of_plain - of_exact).norm() + 1e-3


def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, odd = QFormerLayer(32, 2), QFormerLayer(24, 2)
    cpu = torch.device("cpu")
    monkeypatch.setattr(cpu_layer, "has_tiles", lambda _: True)
    assert not is_for([layer], cpu)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert is_for([layer], cpu) and not is_for([layer, odd], cpu)
        assert not is_for([layer], torch.device("meta"))
        assert not is_for([nn.Linear(32, 32).bfloat16()], cpu)
        monkeypatch.setattr(cpu_layer, "has_tiles", lambda _: False)
        assert not is_for([layer], cpu)
