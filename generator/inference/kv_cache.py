"""Keys and values of the tokens so far, so that a decode step computes one token a row.

The memory is taken once. Every row has its own position, and attention touches only the filled
part: up to the longest row, with a mask only where rows differ. Rows of equal position therefore
belong in one cache; the engine keeps one for each wave of requests.

On a CPU keys and values stay float32 whatever the model's dtype: attention with a single bfloat16
query is 2.5 times slower.

Shape letters: R rows, L packed tokens, S capacity of a row, Hd heads, Dh head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from generator.attention import Sequences


class KVCache:
    """Keys and values of R rows in every layer.

    Attributes:
        positions: (R,) int64, tokens that each row holds.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        max_len: int,
        head_width: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (layers, rows, heads, max_len, head_width)
        dtype = torch.float32 if device.type == "cpu" else dtype
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._rows = torch.arange(rows, device=device)
        self.positions = torch.zeros(rows, device=device, dtype=torch.int64)
        self._lengths = [0] * rows  # the same on the host
        self._begin()

    def __len__(self) -> int:
        """R, rows in use."""
        return len(self.positions)

    def _begin(self) -> None:
        """Work out once a step what all layers share."""
        shortest, longest = min(self._lengths), max(self._lengths)
        self._filled = longest + 1  # the token of this step included
        self._bias = None
        if shortest < longest:
            hidden = torch.arange(self._filled, device=self.positions.device)
            hidden = hidden > self.positions[:, None]  # (R, S)
            bias = torch.zeros(hidden.shape, device=hidden.device, dtype=self._keys.dtype)
            self._bias = bias.masked_fill_(hidden, -math.inf)[:, None, None]

    def advance(self) -> None:
        """Every row has taken one token."""
        self.positions += 1
        self._lengths = [length + 1 for length in self._lengths]
        if self._bias is None:
            self._filled += 1
        else:
            self._begin()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store one token a row, then let it look at all of its row.

        Args:
            layer: which layer's keys and values.
            q: (R, Hd, Dh).
            k: (R, Hd, Dh).
            v: (R, Hd, Dh).

        Returns:
            (R, Hd, Dh) of the dtype of q.
        """
        rows, filled = len(self), self._filled
        if filled > self._keys.shape[3]:
            raise EvatokError(f"a row of {filled} tokens; the cache has {self._keys.shape[3]}")
        keys, values = self._keys[layer, :rows], self._values[layer, :rows]  # (R, Hd, S, Dh)
        if self._bias is None:
            keys[:, :, filled - 1], values[:, :, filled - 1] = k, v
        else:
            at = (self._rows[:rows], slice(None), self.positions)
            keys[at], values[at] = k.to(keys.dtype), v.to(values.dtype)
        out = F.scaled_dot_product_attention(
            q[:, :, None].to(keys.dtype),
            keys[:, :, :filled],
            values[:, :, :filled],
            attn_mask=self._bias,
        )
        return out[:, :, 0].to(q.dtype)

    def fill(self, layer: int, rows: Tensor, sequences: Sequences, k: Tensor, v: Tensor) -> None:
        """Store whole prompts.

        Args:
            layer: which layer's keys and values.
            rows: (N,) int64, the row of each prompt.
            sequences: where each prompt begins.
            k: (L, Hd, Dh), prompts packed.
            v: (L, Hd, Dh), likewise.
        """
        lengths = torch.tensor(sequences.lengths, device=rows.device)
        owner = rows.repeat_interleave(lengths, output_size=sum(sequences.lengths))
        at = (owner, slice(None), sequences.positions())
        self._keys[layer][at] = k.to(self._keys.dtype)
        self._values[layer][at] = v.to(self._values.dtype)

    def set_positions(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Say how many tokens N rows hold, before they are filled."""
        for row, position in zip(rows, positions, strict=True):
            self._lengths[row] = position
        self.positions = torch.tensor(self._lengths, device=self.positions.device)
        self._begin()
        if self._bias is not None:  # a hidden place takes part with weight 0, and 0 × NaN is NaN
            self._keys.zero_()
            self._values.zero_()

    def retain(self, rows: list[int]) -> list[int]:
        """Drop all other rows; the memory of the rows that stay moves as little as possible.

        Args:
            rows: row numbers, ascending, at least one. Those that move keep their order.

        Returns:
            The old number of each row that is left, in the new order.
        """
        stay = {row for row in rows if row < len(rows)}
        movers = iter(row for row in rows if row >= len(rows))
        order = []
        for row in range(len(rows)):
            source = row
            if row not in stay:  # a hole
                source = next(movers)
                filled = self._lengths[source]
                for memory in (self._keys, self._values):
                    memory[:, row, :, :filled] = memory[:, source, :, :filled]
            order.append(source)
        self._lengths = [self._lengths[row] for row in order]
        self.positions = torch.tensor(self._lengths, device=self.positions.device)
        self._begin()
        return order
