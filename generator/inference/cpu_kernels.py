"""The decode step as compiled code: all layers in one call, every row at its own length.

In PyTorch a step is a few hundred small operations, and attention with one query a row runs at half
the speed of memory. `kernels.c` computes the same in one call: each weight is read once for all
rows, attention reads what a row holds and no more, and a request's tokens do not depend on the
batch, to the bit. It is compiled when it is first used (`training.c_kernels`, about two seconds).

| weights | as stored | what enters a product, and the cache |
| --- | --- | --- |
| `float32` | as trained | float32 |
| `bfloat16` | rounded to 8 bits of mantissa | bfloat16 |
| `int8` | 8 bits, one scale for each output | bfloat16 |

Sums, norms and softmax are float32 in every form.

Shape letters: R rows, L tokens, D width, Hd heads, Dh head width, O outputs, I inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from training.c_kernels import OPTIONS, NoCompiler, loaded

if TYPE_CHECKING:
    from generator.gpt import GPT, GPTLayer

SOURCE = Path(__file__).with_name("kernels.c")
OUTPUTS, LANES = 32, 16  # as in kernels.c
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
SMALL = 2**22  # multiplications: a step of fewer is over before a second thread has woken up
PREFILL = 64  # tokens of a prompt that share one reading of the weights


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("layers", "width", "heads", "head_width", "head_padded", "hidden", "vocabulary"),
            *("weights", "slots", "max_len", "threads"),
        )
    ] + [("epsilon", ctypes.c_float)]


class _Matrix(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("scales", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("norm_attention", ctypes.c_void_p),
        ("norm_mlp", ctypes.c_void_p),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
    ]


class _Weights(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        ("head", _Matrix),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
    ]


@lru_cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    found = loaded(SOURCE, OPTIONS)
    found.workspace.restype = ctypes.c_int64
    found.workspace.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.step.restype = None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    found.step.argtypes = [pointer] * 3 + [count] + [pointer] * 6 + [count]
    return found


def reason_against(gpt: GPT) -> str | None:
    """Why this model cannot be stepped by the kernels, in a line; None if it can."""
    size, head_width = gpt.size, gpt.size.width // gpt.size.heads
    if gpt.embedding.weight.device.type != "cpu":
        return f"the model is on {gpt.embedding.weight.device}"
    if size.width % OUTPUTS or head_width > 256:
        return f"a width of {size.width} and heads of {head_width} are not laid out for them"
    try:
        library()
    except NoCompiler as error:
        return str(error)
    return None


class CpuDecoder:
    """The weights of a model as the kernels read them."""

    def __init__(self, gpt: GPT, weights: str) -> None:
        """Lay out a copy.

        Args:
            gpt: on a CPU; is left as it is.
            weights: a name out of `KINDS`.

        Raises:
            NoCompiler: `reason_against(gpt)`.
        """
        reason = reason_against(gpt)
        if reason is not None:
            raise NoCompiler(reason)
        size, self.weights = gpt.size, weights
        self.head_width = size.width // size.heads
        self.head_padded = _padded(self.head_width, LANES)
        self.vocabulary = gpt.vocabulary.size
        self.embedding = gpt.embedding.weight.detach().float().contiguous()
        self.cost = sum(p.numel() for name, p in gpt.named_parameters() if "embedding" not in name)
        self._kept: list[Tensor] = []  # what the structures point at
        hidden = _padded(size.hidden, OUTPUTS)
        layers = (_Layer * size.layers)()
        for to, module in zip(layers, gpt.layers, strict=True):
            layer = cast("GPTLayer", module)
            to.norm_attention = self._keep(layer.norm_attention.weight)
            to.norm_mlp = self._keep(layer.norm_mlp.weight)
            to.qkv = self._matrix([layer.q, layer.k, layer.v])
            to.out = self._matrix([layer.out])
            to.gate_up = self._matrix([layer.gate, layer.up], outputs=hidden)
            to.down = self._matrix([layer.down], inputs=hidden)
        self._layers = layers
        self._structure = _Weights(
            layers=layers,
            norm=self._keep(gpt.norm.weight),
            head=self._matrix([gpt.head], outputs=_padded(self.vocabulary, OUTPUTS)),
            cosines=self._keep(gpt.get_buffer("_cos")),
            sines=self._keep(gpt.get_buffer("_sin")),
        )
        self.sizes = {
            **{"layers": size.layers, "width": size.width, "heads": size.heads},
            **{"head_width": self.head_width, "head_padded": self.head_padded, "hidden": hidden},
            **{"vocabulary": _padded(self.vocabulary, OUTPUTS), "weights": KINDS[weights]},
            "epsilon": 1e-5,
        }

    def __deepcopy__(self, memo: object) -> None:
        """A copied model steps in PyTorch: its weights may change."""

    def _keep(self, tensor: Tensor) -> int:
        """Address of a float32 copy that lives as long as this object."""
        tensor = tensor.detach().to(torch.float32, copy=True).contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, parts: Sequence[Any], outputs: int = 0, inputs: int = 0) -> _Matrix:
        """Linear layers (O, I) side by side, each padded with zeros to these numbers."""
        padded = []
        for part in parts:
            weight = part.weight.detach().float()
            more = (0, max(0, inputs - weight.shape[1]), 0, max(0, outputs - weight.shape[0]))
            padded.append(torch.nn.functional.pad(weight, more))
        values, scales = laid_out(torch.cat(padded), self.weights)
        self._kept.append(values)
        scale = None if scales is None else self._keep(scales)
        return _Matrix(values=values.data_ptr(), scales=scale)

    def new_batch(self, rows: int, max_len: int) -> Slots:
        """An empty cache for so many rows of at most so many tokens."""
        return Slots(self, rows, max_len)


def laid_out(weight: Tensor, weights: str) -> tuple[Tensor, Tensor | None]:
    """A matrix in the order in which the kernels read it, and a scale (O,) of each output for int8.

    Args:
        weight: (O, I) float32, O a multiple of 32; I of 4 where it is rounded.
        weights: a name out of `KINDS`.
    """
    blocks = weight.unflatten(0, (-1, OUTPUTS))  # (O / 32, 32, I)
    if weights == "bfloat16":
        pairs = blocks.bfloat16().unflatten(2, (-1, 2))  # (O / 32, 32, I / 2, 2)
        return pairs.transpose(1, 2).contiguous(), None
    if weights == "float32":
        return blocks.transpose(1, 2).contiguous().clone(), None
    scales, rounded = quantize_int8(weight)
    fours = rounded.unflatten(0, (-1, OUTPUTS)).unflatten(2, (-1, 4))  # (O / 32, 32, I / 4, 4)
    return fours.transpose(1, 2).contiguous(), scales


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (O,) and values (O, I) int8, which multiplied are near to a matrix (O, I)."""
    scales = weight.abs().amax(1).clamp(min=1e-12) / 127
    return scales, (weight / scales[:, None]).round().to(torch.int8)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class Slots:
    """Decode batch whose rows keep their slot of the cache until they end."""

    waits_for = 1  # rows: a new one costs nothing extra

    def __init__(self, steps: CpuDecoder, rows: int, max_len: int) -> None:
        self.steps, self.max_len = steps, _padded(max_len, LANES)
        self._sizes = _Sizes(**steps.sizes, slots=rows, max_len=self.max_len, threads=1)
        sizes = self._sizes
        count = sizes.layers * rows * sizes.heads * self.max_len * sizes.head_padded
        dtype = torch.float32 if steps.weights == "float32" else torch.bfloat16
        self._keys = torch.empty(count, dtype=dtype)
        self._values = torch.empty(count, dtype=dtype)
        self._free = list(range(rows))[::-1]
        none = torch.zeros(0, dtype=torch.int64)
        self._slots, self._positions = none, none  # (R,) of the rows at work

    def add_requests(self, prompts: Sequence[Tensor]) -> None:
        """Begin rows; see `batching.DecodeBatch`."""
        slots = torch.tensor([self._free.pop() for _ in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.cat(list(prompts)).cpu()
        at = slots.repeat_interleave(lengths)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        positions = torch.arange(len(ids)) - starts
        for part in range(0, len(ids), PREFILL):
            few = slice(part, part + PREFILL)
            self._run(ids[few], at[few], positions[few], 0)
        self._slots = torch.cat([self._slots, slots])
        self._positions = torch.cat([self._positions, lengths])

    def step(self, ids: Tensor) -> Tensor:
        """Logits (R, V) float32 after one more token (R,) int64 a row."""
        logits = self._run(ids, self._slots, self._positions, len(ids))
        self._positions = self._positions + 1
        return logits[:, : self.steps.vocabulary]

    def retain(self, rows: Sequence[int]) -> list[int]:
        """End all other rows; see `batching.DecodeBatch`."""
        index = torch.tensor(rows, dtype=torch.int64)
        left = torch.ones(len(self._slots), dtype=torch.bool)
        left[index] = False
        self._free += self._slots[left].tolist()
        self._slots, self._positions = self._slots[index], self._positions[index]
        return list(rows)

    def _run(self, ids: Tensor, slots: Tensor, positions: Tensor, logit_rows: int) -> Tensor:
        """Take tokens (L,) into slots (L,) at positions (L,); logits of the first so many."""
        sizes, steps, rows = self._sizes, self.steps, len(ids)
        if rows and int(positions.max()) >= self.max_len:
            raise EvatokError(
                f"a row of {int(positions.max()) + 1} tokens; the cache has {self.max_len}"
            )
        sizes.threads = torch.get_num_threads() if rows * steps.cost > SMALL else 1
        x = steps.embedding[ids]
        functions, reference = library(), ctypes.byref(sizes)
        memory = torch.empty(functions.workspace(reference, rows))
        logits = torch.empty(logit_rows, sizes.vocabulary)
        slots, positions = slots.contiguous(), positions.contiguous()
        functions.step(
            reference,
            ctypes.byref(steps._structure),
            x.data_ptr(),
            rows,
            slots.data_ptr(),
            positions.data_ptr(),
            self._keys.data_ptr(),
            self._values.data_ptr(),
            memory.data_ptr(),
            logits.data_ptr(),
            logit_rows,
        )
        return logits
