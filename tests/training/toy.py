"""A stage small enough to be trained hundreds of times in a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.stage import StageBase, Validation


class ToyModel(nn.Module):
    """Something of all: an embedding, matrices, a head, vectors, dropout and a buffer."""

    count: Tensor

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 8)
        self.hidden = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.head(self.norm(self.dropout(self.hidden(x + self.embedding(label)))))


class ToyStage(StageBase):
    """Learns random outputs. With `noise` it draws from every generator that the loop offers."""

    def __init__(self, noise: bool = True, rows: int = 8, nan_at: int = -1) -> None:
        self.noise, self.rows, self.nan_at = noise, rows, nan_at
        generator = torch.Generator().manual_seed(7)
        self.model = ToyModel(0.1 if noise else 0.0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(self.rows, 8, generator=generator)
        label = torch.randint(4, (self.rows,), generator=generator)
        y = torch.randn(self.rows, 5, generator=generator)
        if step == self.nan_at:
            x[0] = float("nan")
        return tuple(part.chunk(world)[rank] for part in (x, label, y))

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, label, y = batch
        if self.noise:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        out = model(x, label)
        mse, l1 = (out - y).square().mean(), (out - y).abs().mean()
        return mse + 0.1 * l1, {"mse": mse, "l1": l1}

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        assert isinstance(model, ToyModel)
        model.count += 1
        if self.noise and step % 3 == 0:
            model.head.bias.add_(0.01 * torch.randn(5, generator=generator))

    def validate(self, model: nn.Module, step: int) -> Validation:
        assert not model.training and isinstance(model, ToyModel)
        norm = model.head.weight.norm().item()
        picture = np.full((8, 6, 3), step % 256, np.uint8)
        return Validation({"norm": norm, "count": model.count.item()}, {"a/b picture": picture})
