"""The GPT in a form for sampling: fewer and larger products, weights laid out for a single token.

A decode step reads every weight for a handful of rows, so its time is that of reading them plus a
fixed cost for each product. q, k and v become one product, gate and up another. On a CPU bfloat16
weights are stored in the order in which oneDNN multiplies (1.5 times faster than ordering them in
each step, and equal to the bit); 8-bit weights are a quarter of float32's bytes.

| weights | linear layers |
| --- | --- |
| `float32` | as trained |
| `bfloat16` | rounded to 8 bits of mantissa |
| `int8` | rounded once, one scale for all; activations in each step; on a CPU only |

The 8-bit form rounds the activations of all rows of a step with one scale: there, and only there, a
sample depends on what else is in the batch.

Shape letters: L rows, D width, Hd heads, Dh head width.
"""

from __future__ import annotations

import copy
import warnings
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.gpt import GPT, GPTLayer, Mix, Rotary, rotate

Weights = Literal["float32", "bfloat16", "int8"]


class PackedLinear(nn.Module):
    """A linear layer without bias whose bfloat16 weight lies as oneDNN multiplies it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # opaque to PyTorch: no parameter, and not to be saved
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        """(L, D) → (L, D')."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class DecodeLayer(nn.Module):
    """A Llama layer with four products instead of seven; see `GPTLayer`."""

    def __init__(self, layer: GPTLayer) -> None:
        super().__init__()
        self.heads = layer.heads
        self.norm_attention, self.norm_mlp = layer.norm_attention, layer.norm_mlp
        self.qkv = _joined(layer.q, layer.k, layer.v)
        self.out = layer.out
        self.gate_up = _joined(layer.gate, layer.up)
        self.down = layer.down

    def forward(self, x: Tensor, rotary: Rotary, mix: Mix) -> Tensor:
        """One layer of (L, D); arguments as `GPTLayer.forward`."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.split([2 * self.heads, self.heads], 1)
        q, k = rotate(qk, rotary).chunk(2, 1)  # (L, Hd, Dh) each
        x = x + self.out(mix(q, k, v).flatten(-2))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _joined(*layers: nn.Linear) -> nn.Linear:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    out.weight = nn.Parameter(weight, requires_grad=False)
    return out


def for_sampling(gpt: GPT, weights: Weights = "float32") -> GPT:
    """A copy that samples faster and can be neither trained nor saved.

    Args:
        gpt: is left as it is.
        weights: see the head of this file; norms follow, the cache is as `KVCache` has it.

    Raises:
        ValueError: 8-bit weights for a model that is not on a CPU.
    """
    device = gpt.embedding.weight.device
    if weights == "int8" and device.type != "cpu":
        raise ValueError(f"8-bit weights are for a CPU, and the model is on {device}")
    out = copy.deepcopy(gpt).eval().requires_grad_(False)
    angles = {name: buffer.clone() for name, buffer in out.named_buffers()}
    out = out.to(torch.bfloat16 if weights == "bfloat16" else torch.float32)
    for name, buffer in angles.items():  # positions need more than 8 bits
        setattr(out, name, buffer.float())
    out.layers = nn.ModuleList(DecodeLayer(cast(GPTLayer, layer)) for layer in out.layers)
    if weights == "int8":
        with warnings.catch_warnings():
            # PyTorch moves the tools to another package; the kernels behind them stay
            warnings.simplefilter("ignore")
            torch.ao.quantization.quantize_dynamic(out, {nn.Linear}, torch.qint8, inplace=True)
    elif weights == "bfloat16" and device.type == "cpu" and _has_packed():
        for parent in [out, *out.layers]:
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, PackedLinear(child.weight))
    return out


def weights_of(name: str) -> Weights:
    """A form by name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in get_args(Weights):
        raise ValueError(f"weights {name!r}: one of {', '.join(get_args(Weights))}")
    return cast(Weights, name)


def _has_packed() -> bool:
    """Whether this build and processor have oneDNN's bfloat16 products."""
    available = torch.backends.mkldnn.is_available()
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())
