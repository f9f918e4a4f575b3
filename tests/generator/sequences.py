"""Sequences packed one behind another."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(lengths: list[int]) -> Tensor:
    """(N + 1,) int32 offsets of sequences of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
