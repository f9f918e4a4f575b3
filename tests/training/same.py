"""Whether two modules hold the same state."""

from __future__ import annotations

import torch
from torch import nn


def assert_same(ours: nn.Module, theirs: nn.Module, tolerance: float = 0.0) -> None:
    """Assert that no value of the two state dicts differs by more than `tolerance`."""
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
