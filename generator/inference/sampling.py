"""From logits to one token a row: temperature, top-k, top-p, and the guidance scale of a block.

Shape letters: N requests, T blocks, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evatok.core.compute.devices import has_float64

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Manner:
    """Sampling rule of the rows of a step, known on the host.

    Attributes:
        is_greedy: every row takes its most probable token.
        is_cut: some row has a top-k or top-p, or is greedy.
    """

    is_greedy: bool
    is_cut: bool

    @staticmethod
    def from_rows(rows: Iterable[tuple[float, int, float]]) -> Manner:
        """Of rows of temperature, top-k and top-p."""
        rows = list(rows)
        return Manner(
            all(temperature == 0 for temperature, _, _ in rows),
            any(temperature == 0 or k > 0 or p < 1 for temperature, k, p in rows),
        )


def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    manner: Manner | None = None,
) -> Tensor:
    """Draw one token a row; tokens at −∞ behind all others change no bit of it.

    Args:
        logits: (N, V) float, −∞ where the grammar forbids.
        uniform: (N,) `precise` in [0, 1), one random number a row.
        temperature: (N,) float32; 0 takes the most probable token.
        top_k: (N,) int64; 0 = all.
        top_p: (N,) float32; 1 = all. Of the distribution that top-k leaves, renormalised.
        manner: of these settings; read from them, which a device has to be waited for, if None.

    Returns:
        (N,) int64.
    """
    if manner is None:
        columns = (temperature.tolist(), top_k.tolist(), top_p.tolist())
        manner = Manner.from_rows(zip(*columns, strict=True))
    greedy = temperature == 0
    if manner.is_greedy:
        return logits.argmax(-1)
    logits = logits.float() / torch.where(greedy, 1.0, temperature)[:, None]
    top_k = torch.where(greedy, 1, top_k)
    if manner.is_cut:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[1], device=logits.device)
        drop = (top_k[:, None] > 0) & (rank >= top_k[:, None])
        weights = (ordered - ordered[:, :1]).exp_().masked_fill_(drop, 0)
        total = weights.cumsum(-1)
        before = (total - weights) / total[:, -1:]  # probability, among the top k, of those before
        drop |= (before >= top_p[:, None]) & (top_p[:, None] < 1)
        drop[:, 0] = False
        logits = logits.masked_fill(drop.scatter(1, order, drop), -math.inf)
    # Not softmax: dividing by the sum would cost as much, and it cancels in the target.
    weights = (logits - logits.amax(-1, keepdim=True)).to(uniform.dtype).exp_()
    total = weights.cumsum_(-1)
    # Strictly under the end, else the last token could be chosen although it is forbidden.
    under = 1 - (1e-12 if uniform.dtype == torch.float64 else 1e-6)
    target = uniform[:, None] * under * total[:, -1:]
    return torch.searchsorted(total, target, right=True)[:, 0]


def precise(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, but for Apple's GPUs, which have none."""
    return torch.float64 if has_float64(device) else torch.float32


def scheduled(guidance: Tensor, schedule: Tensor, block: Tensor, blocks: Tensor) -> Tensor:
    """Guidance scales (N,) at block b of T; see `requests.SamplingConfig`.

    Args:
        guidance: (N,) float, s.
        schedule: (N,) float, place in `SCHEDULES`.
        block: (N,) int64, b from 0.
        blocks: (N,) float, T.
    """
    t = block / (blocks - 1).clamp(min=1)
    weight = torch.where(schedule == 1, t, 0.5 - 0.5 * (math.pi * t).cos())
    return torch.where(schedule == 0, guidance, 1 + (guidance - 1) * weight)
