"""Attention as compiled C code against the same in PyTorch: values, gradients, odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.attention.batch_layout import BlockEnds
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.cpu.attention import attention, attention_backward

KINDS = ("1d-1d", "1d-3d", "3d-1d", "3d-3d")


def attended(groups: ClipGroups, inputs: list[Tensor], cells: int, kind: str) -> Tensor:
    q, k, v = inputs
    return groups.attend(q, k, v, cells, kind, "padded")


def results(out: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad((out * weight).float().sum(), inputs)]


@pytest.mark.usefixtures("tiles_or_not")
@pytest.mark.parametrize(("clips", "blocks", "cells", "heads", "width"), [
    (3, 4, 16, 2, 64), (2, 3, 5, 1, 8), (1, 1, 1, 3, 40), (2, 2, 50, 1, 96),
])  # fmt: skip
def test_it_is_padded_attention(
    clips: int, blocks: int, cells: int, heads: int, width: int
) -> None:
    """No further from float32 than twice what PyTorch is in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    assignment = torch.randint(1, 17, (clips, blocks), generator=generator)
    groups = ClipGroups.from_assignment(assignment)
    counts = {"1d": groups.counts, "3d": torch.full_like(groups.counts, cells)}
    ends = {side: BlockEnds.from_counts(x) for side, x in counts.items()}
    for kind in KINDS:
        own, other = kind.split("-")
        rows = [int(counts[side].sum()) for side in (own, other, other)]
        # as parts of a wider product, as the layer has them
        wide = [torch.randn(n, heads, 3 * width, generator=generator).bfloat16() for n in rows]
        inputs = [x.view(n, 3, heads, width)[:, 1] for n, x in zip(rows, wide, strict=True)]
        to = [torch.empty_like(x).view(x.shape[0], 3, heads, width)[:, 1] for x in wide]
        weight = torch.randn(rows[0], heads, width, generator=generator).bfloat16()
        q, k, v = inputs
        outputs = attention(q, k, v, ends[own], ends[other])
        attention_backward(weight, inputs, outputs, ends[own], ends[other], to)
        found = [outputs[0], *to]
        plain = [x.detach().requires_grad_() for x in inputs]
        plain = results(attended(groups, plain, cells, kind), plain, weight)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        exact = results(attended(groups, exact, cells, kind), exact, weight.float())
        for a, b, c in zip(found, plain, exact, strict=True):
            assert a.dtype == torch.bfloat16
            allowed = 2 * (b.float() - c).norm() + 1e-3 * c.norm() + 1e-5
            assert (a.float() - c).norm() <= allowed, kind


def test_it_does_not_depend_on_threads_or_other_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([[3, 20], [40, 1], [7, 7]])
    ends = BlockEnds.from_counts(counts)
    q, k, v = (torch.randn(78, 2, 32, generator=generator).bfloat16() for _ in range(3))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(attention(q, k, v, ends, ends)[0])
    torch.set_num_threads(before)
    assert torch.equal(*found)
    one = BlockEnds.from_counts(counts[1:2])
    alone = attention(q[23:64], k[23:64], v[23:64], one, one)[0]
    assert torch.equal(alone, found[0][23:64])
