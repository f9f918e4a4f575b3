"""Rows on their way through the model: the past of each, and one token more for all of them.

| rows | where | a new row |
| --- | --- | --- |
| `native.Slots` | compiled, on a CPU | takes a free slot at once |
| `static.StaticRows` | a GPU, as a CUDA graph | takes a free slot at once |
| `Waves` | PyTorch, everywhere | starts in a wave with others, a cache a wave |

In PyTorch attention is one call for all rows of a cache, and fast only where they are equally long:
rows that start together therefore share a cache, and a wave waits until a few can start.

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


class Rows(Protocol):
    """What the engine asks of rows.

    Attributes:
        waits_for: rows that should be free before new ones begin, unless none is at work.
    """

    @property
    def waits_for(self) -> int:
        """Rows that should be free before new ones begin, unless none is at work."""
        ...

    def admit(self, prompts: Sequence[Tensor]) -> None:
        """Begin rows behind those at work: prompts (P,) int64, which may be empty."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Logits (R, V) after one more token (R,) int64 a row."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """End all rows but these, ascending; rows may change places.

        Returns:
            The old number of each row that is left, in the new order. Neighbours that stay, or
            move, together are still neighbours.
        """
        ...


class Waves:
    """Rows in PyTorch, those that began together in one cache."""

    def __init__(self, gpt: GPT, rows: int, places: int) -> None:
        """Begin without a row.

        Args:
            gpt: the model.
            rows: at work at most.
            places: tokens of a row at most.
        """
        self.gpt, self.places = gpt, places
        self.waits_for = max(1, rows // 4)  # a wave costs a few calls in every layer
        self._caches: list[KVCache] = []

    def admit(self, prompts: Sequence[Tensor]) -> None:
        """Begin a wave; see `Rows`."""
        device = self.gpt.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        cache = self.gpt.new_cache(len(prompts), self.places)
        rows = lengths.nonzero()[:, 0]
        if len(rows):
            ids = torch.cat([prompts[row] for row in rows.tolist()]).to(device)
            cu_seqlens = F.pad(lengths[rows].cumsum(0), (1, 0)).to(torch.int32)
            self.gpt.prefill(ids, cu_seqlens, cache, rows)
        self._caches.append(cache)

    def step(self, ids: Tensor) -> Tensor:
        """One token a row; see `Rows`."""
        return self.gpt.step(ids, self._caches)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """End all other rows; see `Rows`."""
        order, first, caches = [], 0, []
        stays = set(rows)
        for cache in self._caches:
            size = len(cache)
            stay = [i for i in range(size) if first + i in stays]
            if stay:
                if len(stay) < size:
                    stay = cache.keep(stay)
                order += [first + i for i in stay]
                caches.append(cache)
            first += size
        self._caches = caches
        return order
