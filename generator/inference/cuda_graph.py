"""Fixed-shape decode batch for CUDA graphs.

A step of a small batch is a few hundred kernels that take longer to start than to run. A graph
starts them all at once, but replays the shapes with which it was recorded: here attention looks at
every place of the cache under a mask, every slot takes part whether it is in use or not, and no
number is read back on the way. Without a recording the same steps run on any device, which is how
they are tested.

Shape letters: R slots, S capacity of a slot, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from generator.inference.kv_cache import KVCache

if TYPE_CHECKING:
    from generator.gpt import GPT


class StaticCache(KVCache):
    """A cache whose attention always has one shape; what is not filled is hidden."""

    def _begin(self) -> None:
        """Once, on an empty cache: the mask follows from the positions in every step."""
        self._filled, self._bias = self._keys.shape[3], None
        self._keys.zero_()  # a hidden place takes part with weight 0, and 0 × NaN is NaN
        self._values.zero_()

    def advance(self) -> None:
        """Every row has taken one token; rows that are not in use stay at the end."""
        self.positions.add_(1).clamp_(max=self._filled - 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `KVCache.attend`, over all positions."""
        keys, values = self._keys[layer], self._values[layer]  # (R, Hd, S, Dh)
        at = (self._rows, slice(None), self.positions)
        keys[at], values[at] = k.to(keys.dtype), v.to(values.dtype)
        index = torch.arange(self._filled, device=keys.device)
        hidden = index > self.positions[:, None]  # (R, S)
        bias = torch.zeros(hidden.shape, device=keys.device, dtype=keys.dtype)
        bias = bias.masked_fill_(hidden, -math.inf)[:, None, None]
        query = q[:, :, None].to(keys.dtype)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)[:, :, 0].to(
            q.dtype
        )

    def set_positions(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Say how many tokens N rows hold, before they are filled."""
        device = self.positions.device
        at = torch.tensor(rows, device=device)
        self.positions[at] = torch.tensor(positions, device=device)  # in place, for the graph


class GraphBatch:
    """Decode batch of fixed shape, whose rows keep their slot."""

    waits_for = 1  # rows: all slots are computed in any case

    def __init__(self, gpt: GPT, rows: int, max_len: int, record: bool) -> None:
        """Begin without a row.

        Args:
            gpt: the model.
            rows: at work at most.
            max_len: tokens of a row at most.
            record: replay a CUDA graph; else the same operations one by one.
        """
        size, weight = gpt.size, gpt.embedding.weight
        self.gpt, self.record = gpt, record
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0, device=weight.device)
        with torch.inference_mode():
            shape = (size.layers, rows, size.heads, max_len, size.width // size.heads)
            self._cache = StaticCache(*shape, weight.device, weight.dtype)
            self._ids = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        self._free = list(range(rows))[::-1]
        self._slots: list[int] = []
        self._at = self._ids[:0]  # the slots, on the device

    def add_requests(self, prompts: Sequence[Tensor]) -> None:
        """Begin rows; see `batching.DecodeBatch`."""
        slots = [self._free.pop() for _ in prompts]
        self._slots += slots
        device = self._ids.device
        rows, lengths = torch.tensor(slots), torch.tensor([len(prompt) for prompt in prompts])
        self._cache.set_positions(slots, lengths.tolist())
        self._at = torch.tensor(self._slots, device=device)
        filled = lengths.nonzero()[:, 0]
        if len(filled):
            ids = torch.cat([prompts[row] for row in filled.tolist()]).to(device)
            cu_seqlens = F.pad(lengths[filled].cumsum(0), (1, 0)).to(torch.int32)
            self.gpt.prefill(ids, cu_seqlens, self._cache, rows[filled])

    def step(self, ids: Tensor) -> Tensor:
        """One token a row; see `batching.DecodeBatch`."""
        self._ids[self._at] = ids
        if self.record and self._graph is None:
            self._recorded()
        if self._graph is None:
            self._logits = self.gpt.step(self._ids, [self._cache])
        else:
            self._graph.replay()
        return self._logits[self._at]

    def retain(self, rows: Sequence[int]) -> list[int]:
        """End all other rows; see `batching.DecodeBatch`."""
        kept = [self._slots[row] for row in rows]
        self._free += sorted(set(self._slots) - set(kept))
        self._slots = kept
        self._at = torch.tensor(kept, dtype=torch.int64, device=self._ids.device)
        return list(rows)

    def _recorded(self) -> None:
        """Record a step; what the trial runs write is written again by the first replay."""
        before = self._cache.positions.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.gpt.step(self._ids, [self._cache])
                self._cache.positions.copy_(before)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self.gpt.step(self._ids, [self._cache])
        self._cache.positions.copy_(before)
