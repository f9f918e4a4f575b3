"""The GPT in a form for sampling: weights laid out for a single token.

A decode step reads every weight for a handful of rows, so its time is that of reading them plus a
fixed cost for each operation. On a CPU with a C compiler the whole step is compiled code
(`generator.inference.cpu_kernels`). Elsewhere it is PyTorch's, with fewer and larger products: q,
k and v become one, gate and up another, and on a CPU bfloat16 weights are stored in the order in
which oneDNN multiplies (1.5 times faster than ordering them in each step, and equal to the bit).

| weights | linear layers |
| --- | --- |
| `float32` | as trained |
| `bfloat16` | rounded to 8 bits of mantissa |
| `int8` | rounded to 8 bits with a scale for each output; activations are not |

Shape letters: L rows, D width, O outputs, Hd heads, Dh head width.
"""

from __future__ import annotations

import copy
import logging
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evatok.core.errors import EvatokError
from generator.gpt import GPT, GPTLayer, Mix, Rotary, rotate
from generator.inference.cpu_kernels import CpuDecoder, quantize_int8, reason_against

log = logging.getLogger(__name__)

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


class RoundedLinear(nn.Module):
    """A linear layer without bias whose weight has 8 bits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scales, values = quantize_int8(weight.detach().float())
        self.scales, self.values = nn.Buffer(scales), nn.Buffer(values)

    def forward(self, x: Tensor) -> Tensor:
        """(L, D) → (L, D')."""
        if x.device.type == "cpu":  # its kernels know only 16-bit activations
            ones = torch.ones_like(self.scales, dtype=torch.bfloat16)
            out = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self.values, ones)
        else:
            out = F.linear(x, self.values.to(x.dtype))
        return (out * self.scales).to(x.dtype)


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


def prepare_for_inference(
    gpt: GPT,
    weights: Weights = "float32",
    compiled: bool | None = None,
    graphs: bool = False,
) -> GPT:
    """A model that samples faster, and is to be neither trained nor saved.

    Args:
        gpt: is left as it is.
        weights: see the head of this file.
        compiled: whether steps are compiled code; if None, where they can be, and the log says why
            where they can't. Such a model shares its layers with `gpt` and computes as it does in
            everything but the engine.

        graphs: replay each step as a CUDA graph (`generator.inference.cuda_graph`).

    Raises:
        NoCompiler: compiled steps are asked for and cannot be had.
        EvatokError: graphs are asked for without a GPU.
    """
    if graphs and gpt.device.type != "cuda":
        raise EvatokError(f"CUDA graphs need a GPU, and the model is on {gpt.device}")
    if compiled is None:
        reason = reason_against(gpt)
        compiled = reason is None
        is_loss = not compiled and gpt.device.type == "cpu"
        told = "compiled" if compiled else f"PyTorch's, since {reason}"
        log.log(logging.WARNING if is_loss else logging.INFO, "decode steps: %s", told)
    if compiled:
        out = copy.copy(gpt)
        out.compiled, out.weights = CpuDecoder(gpt, weights), weights
        return out
    device = gpt.device
    out = copy.deepcopy(gpt).eval().requires_grad_(False)
    angles = {name: buffer.clone() for name, buffer in out.named_buffers()}
    out = out.to(torch.bfloat16 if weights == "bfloat16" else torch.float32)
    for name, buffer in angles.items():  # positions need more than 8 bits
        setattr(out, name, buffer.float())
    out.layers = nn.ModuleList(DecodeLayer(cast(GPTLayer, layer)) for layer in out.layers)
    if weights == "int8":
        _replace(out, RoundedLinear)
    elif weights == "bfloat16" and device.type == "cpu" and _has_packed():
        _replace(out, PackedLinear)
    out.graphs, out.weights = graphs, weights
    return out


def _replace(gpt: GPT, kind: type[PackedLinear] | type[RoundedLinear]) -> None:
    for parent in [gpt, *gpt.layers]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child.weight))


def weights_of(name: str) -> Weights:
    """A form by name.

    Raises:
        EvatokError: there is none of this name.
    """
    if name not in get_args(Weights):
        raise EvatokError(f"weights {name!r}: one of {', '.join(get_args(Weights))}")
    return cast(Weights, name)


def _has_packed() -> bool:
    """Whether this build and processor have oneDNN's bfloat16 products."""
    available = torch.backends.mkldnn.is_available()
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())
