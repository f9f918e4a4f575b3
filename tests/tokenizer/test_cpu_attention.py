"""Attention as compiled C code against the same in PyTorch: values, gradients, odd sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizer import cpu_attention
from tokenizer.batch_layout import BlockEnds
from tokenizer.cpu_attention import is_fast_on, library, packed_attention
from tokenizer.masks import ClipGroups
from training.c_kernels import NoCompiler

KINDS = ("1d-1d", "1d-3d", "3d-1d", "3d-3d")


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    try:
        library()
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(params=[False, True], ids=["as it is", "without tiles"])
def _with_and_without_tiles(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    if not request.param:
        yield
        return
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_attention, "OPTIONS", (*cpu_attention.OPTIONS, "-DNO_TILES"))
    library.cache_clear()
    yield
    library.cache_clear()


def results(out: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad((out * weight).float().sum(), inputs)]


@pytest.mark.usefixtures("_with_and_without_tiles")
@pytest.mark.parametrize(("clips", "blocks", "cells", "heads", "width"), [
    (3, 4, 16, 2, 64), (2, 3, 5, 1, 8), (1, 1, 1, 3, 40), (2, 2, 50, 1, 96),
])  # fmt: skip
def test_it_is_padded_attention(
    clips: int, blocks: int, cells: int, heads: int, width: int
) -> None:
    """No further from float32 than twice what PyTorch is in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    assignment = torch.randint(1, 17, (clips, blocks), generator=generator)
    groups = ClipGroups.of(assignment)
    counts = {"1d": groups.counts, "3d": torch.full_like(groups.counts, cells)}
    ends = {side: BlockEnds.of(x, side == "3d") for side, x in counts.items()}
    for kind in KINDS:
        own, other = kind.split("-")
        rows = [int(counts[side].sum()) for side in (own, other, other)]
        # as parts of a wider product, as the layer has them
        wide = [torch.randn(n, heads, 3 * width, generator=generator).bfloat16() for n in rows]
        inputs = [x[..., :width].requires_grad_() for x in wide]
        weight = torch.randn(rows[0], heads, width, generator=generator).bfloat16()
        found = results(packed_attention(*inputs, ends[own], ends[other]), inputs, weight)
        plain = groups.attend(*inputs, cells, kind, "padded")
        plain = results(plain, inputs, weight)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        exact = results(groups.attend(*exact, cells, kind, "padded"), exact, weight.float())
        for a, b, c in zip(found, plain, exact, strict=True):
            assert a.dtype == torch.bfloat16
            allowed = 2 * (b.float() - c).norm() + 1e-3 * c.norm() + 1e-5
            assert (a.float() - c).norm() <= allowed, kind


def test_it_does_not_depend_on_threads_or_other_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([[3, 20], [40, 1], [7, 7]])
    ends = BlockEnds.of(counts, is_grid=False)
    q, k, v = (torch.randn(78, 2, 32, generator=generator).bfloat16() for _ in range(3))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(packed_attention(q, k, v, ends, ends))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    one = BlockEnds.of(counts[1:2], is_grid=False)
    alone = packed_attention(q[23:64], k[23:64], v[23:64], one, one)
    assert torch.equal(alone, found[0][23:64])


def test_what_it_is_used_for() -> None:
    assert not is_fast_on(torch.device("cpu"))  # float32
    assert not is_fast_on(torch.device("meta"))
