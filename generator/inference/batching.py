"""Batches of rows that are decoded together, one token a step for every row.

| rows | where | a new row |
| --- | --- | --- |
| `cpu_kernels.Slots` | compiled, on a CPU | takes a free slot at once |
| `cuda_graph.GraphBatch` | a GPU, as a CUDA graph | takes a free slot at once |
| `Cohorts` | PyTorch, everywhere | starts in a cohort with others, one cache each |

In PyTorch attention is one call for all rows of a cache, and fast only where they are equally long:
rows that start together therefore share a cache, and a cohort waits until a few can start.

Shape letters: R rows, P tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from generator.inference.kv_cache import KVCache

if TYPE_CHECKING:
    from generator.gpt import GPT


class DecodeBatch(Protocol):
    """Decode batch, as the engine uses it.

    Attributes:
        waits_for: minimum number of free rows before requests are added (ignored when idle).
    """

    @property
    def waits_for(self) -> int:
        """Minimum number of free rows before requests are added (ignored when idle)."""
        ...

    def add_requests(self, prompts: Sequence[Tensor]) -> None:
        """Begin rows behind those at work: prompts (P,) int64, which may be empty."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Logits (R, V) after one more token (R,) int64 a row."""
        ...

    def retain(self, rows: Sequence[int]) -> list[int]:
        """End all rows but these, ascending; rows may change their order.

        Returns:
            The old number of each row that is left, in the new order. Neighbours that stay, or
            move, together are still neighbours.
        """
        ...


class Cohorts:
    """Decode batch in PyTorch: rows that began together share a cache."""

    def __init__(self, gpt: GPT, rows: int, max_len: int) -> None:
        """Begin without a row.

        Args:
            gpt: the model.
            rows: at work at most.
            max_len: tokens of a row at most.
        """
        self.gpt, self.max_len = gpt, max_len
        self.waits_for = max(1, rows // 4)  # a cohort costs a few calls in every layer
        self._caches: list[KVCache] = []

    def add_requests(self, prompts: Sequence[Tensor]) -> None:
        """Begin a cohort; see `DecodeBatch`."""
        device = self.gpt.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        cache = self.gpt.new_cache(len(prompts), self.max_len)
        rows = lengths.nonzero()[:, 0]
        if len(rows):
            ids = torch.cat([prompts[row] for row in rows.tolist()]).to(device)
            cu_seqlens = F.pad(lengths[rows].cumsum(0), (1, 0)).to(torch.int32)
            self.gpt.prefill(ids, cu_seqlens, cache, rows)
        self._caches.append(cache)

    def step(self, ids: Tensor) -> Tensor:
        """One token a row; see `DecodeBatch`."""
        return self.gpt.step(ids, self._caches)

    def retain(self, rows: Sequence[int]) -> list[int]:
        """End all other rows; see `DecodeBatch`."""
        order, first, caches = [], 0, []
        stays = set(rows)
        for cache in self._caches:
            size = len(cache)
            stay = [i for i in range(size) if first + i in stays]
            if stay:
                if len(stay) < size:
                    stay = cache.retain(stay)
                order += [first + i for i in stay]
                caches.append(cache)
            first += size
        self._caches = caches
        return order
