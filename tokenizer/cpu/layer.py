"""A Q-Former layer in training on a CPU: bfloat16 products, float32 residuals, no small operations.

As `QFormerLayer` under autocast, in a dozen calls of C code forward and as many backward. Made for
processors with AMX; elsewhere PyTorch's products serve as well.

Shape letters: L rows, D width, Hd heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.attention.batch_layout import BlockEnds
from tokenizer.cpu import attention, linear
from tokenizer.cpu.linear import Kept, Linear
from tokenizer.cpu.tiles import has_tiles, is_autocast_to_bfloat16


def is_for(layers: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether training these layers on a device is best done by this code."""
    if not is_autocast_to_bfloat16(device) or not has_tiles(linear.SOURCE):
        return False
    return all(
        type(p) is nn.Parameter and p.dtype == torch.float32 and p.shape[0] % linear.WHOLE == 0
        for layer in layers
        for p in layer.parameters()
    )


def _maps(weights: Sequence[Tensor], epsilon: float) -> list[Linear]:
    """The seven maps, of weights and biases in the order of `QFormerLayer`."""
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    norm_self, qkv, self_out, norm_cross, q, kv, cross_out, norm_mlp, mlp_in, mlp_out = pairs
    return [
        Linear(*qkv, *norm_self, epsilon),
        Linear(*self_out),
        Linear(*q, *norm_cross, epsilon),
        Linear(*kv),
        Linear(*cross_out),
        Linear(*mlp_in, *norm_mlp, epsilon),
        Linear(*mlp_out),
    ]


def _heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(L, parts · D) → `parts` times (L, Hd, Dh), without a copy."""
    return tuple(part.unflatten(1, (heads, -1)) for part in x.chunk(parts, 1))


def _attended(inputs: Sequence[Tensor], own: BlockEnds, other: BlockEnds) -> tuple[Tensor, Tensor]:
    q, k, v = inputs
    return attention.attention(q, k, v, own, other)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        references: Tensor,
        own: BlockEnds,
        other: BlockEnds,
        heads: int,
        epsilon: float,
        *weights: Tensor,
    ) -> Tensor:
        maps = _maps(weights, epsilon)
        qkv, of_qkv = linear.forward(maps[0], x)
        mixed, sums = _attended(_heads(qkv, 3, heads), own, own)
        x_cross, _ = linear.forward(maps[1], mixed.flatten(1), x)
        q, of_q = linear.forward(maps[2], x_cross)
        kv, _ = linear.forward(maps[3], references)
        q_and_kv = (*_heads(q, 1, heads), *_heads(kv, 2, heads))
        mixed_cross, sums_cross = _attended(q_and_kv, own, other)
        x_mlp, _ = linear.forward(maps[4], mixed_cross.flatten(1), x_cross)
        hidden, of_mlp = linear.forward(maps[5], x_mlp, gelu=True)
        out, _ = linear.forward(maps[6], hidden, x_mlp)
        ctx.save_for_backward(
            x, references, x_cross, x_mlp, qkv, mixed, sums, q, kv, mixed_cross, sums_cross, hidden,
            of_qkv.statistics, of_q.statistics, *of_mlp, own.ends, other.ends, *weights,
        )  # fmt: skip
        ctx.sizes = (heads, epsilon)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, references, x_cross, x_mlp, *kept = ctx.saved_tensors
        qkv, mixed, sums, q, kv, mixed_cross, sums_cross, hidden, *kept = kept
        of_qkv, of_q, of_mlp, slope, own_ends, other_ends, *weights = kept
        heads, epsilon = ctx.sizes
        own, other = BlockEnds(own_ends), BlockEnds(other_ends)
        maps, none = _maps(weights, epsilon), Kept(None, None)
        gradient = gradients[0].contiguous()

        of_hidden, mlp_out = linear.backward(maps[6], hidden, none, gradient)
        gradient, mlp_in = linear.backward(
            maps[5], x_mlp, Kept(of_mlp, slope), of_hidden, beside=gradient
        )
        of_mixed, cross_out = linear.backward(maps[4], mixed_cross.flatten(1), none, gradient)
        to_q, to_kv = torch.empty_like(q), torch.empty_like(kv)
        attention.attention_backward(
            of_mixed, (*_heads(q, 1, heads), *_heads(kv, 2, heads)), (mixed_cross, sums_cross),
            own, other, (*_heads(to_q, 1, heads), *_heads(to_kv, 2, heads)),
        )  # fmt: skip
        of_references, cross_kv = linear.backward(maps[3], references, none, to_kv)
        gradient, cross_q = linear.backward(
            maps[2], x_cross, Kept(of_q, None), to_q, beside=gradient
        )
        of_mixed, self_out = linear.backward(maps[1], mixed.flatten(1), none, gradient)
        to_qkv = torch.empty_like(qkv)
        attention.attention_backward(
            of_mixed, _heads(qkv, 3, heads), (mixed, sums), own, own, _heads(to_qkv, 3, heads)
        )
        gradient, self_qkv = linear.backward(
            maps[0], x, Kept(of_qkv, None), to_qkv, beside=gradient
        )
        of_weights = (
            *self_qkv[2:], *self_qkv[:2], *self_out, *cross_q[2:], *cross_q[:2], *cross_kv,
            *cross_out, *mlp_in[2:], *mlp_in[:2], *mlp_out,
        )  # fmt: skip
        return gradient, of_references, None, None, None, None, *of_weights


def trained_layer(
    layer: nn.Module,
    x: Tensor,
    references: Tensor,
    sides: tuple[BlockEnds, BlockEnds],
    heads: int,
    epsilon: float,
) -> Tensor:
    """Run a `QFormerLayer`.

    Args:
        layer: its parameters in the order of that class; `is_for` holds.
        x: (L, D) queries, packed clip by clip.
        references: (L, D), likewise.
        sides: how the rows of both lie in the clips.
        heads: of the attention.
        epsilon: of the layer norms.

    Returns:
        (L, D) float32 updated queries.
    """
    rows = (part.float().contiguous() for part in (x, references))
    out = _Layer.apply(*rows, *sides, heads, epsilon, *layer.parameters())
    assert isinstance(out, Tensor)
    return out
