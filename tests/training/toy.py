"""A stage small enough to be trained hundreds of times in a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evatok.core.config import AdversaryConfig, OptimizerConfig
from evatok.core.processes.distributed import mean_over_processes
from training.stage import StageBase, Validation


class ToyLayer(nn.Module):
    """A small part with everything that a layer has."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 13), nn.Linear(13, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.dropout(nn.functional.gelu(self.wide(x))))


class LayeredModel(nn.Module):
    """As `ToyModel`, in layers."""

    output_layers = ("head",)
    count: Tensor

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 8)
        self.layers = nn.ModuleList(ToyLayer(8, dropout) for _ in range(3))
        self.head = nn.Linear(8, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x + self.embedding(label)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class ToyModel(nn.Module):
    """Something of all: an embedding, matrices, a head, vectors, dropout and a buffer."""

    output_layers = ("head",)
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
        self.model = self.build(0.1 if noise else 0.0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def build(self, dropout: float) -> nn.Module:
        return ToyModel(dropout)

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
        assert isinstance(model, ToyModel | LayeredModel)
        model.count += 1
        if self.noise and step % 3 == 0:
            model.head.bias.add_(0.01 * torch.randn(5, generator=generator))

    def validate(self, model: nn.Module, step: int) -> Validation:
        assert not model.training and isinstance(model, ToyModel | LayeredModel)
        norm = model.head.weight.norm().item()
        picture = np.full((8, 6, 3), step % 256, np.uint8)
        return Validation({"norm": norm, "count": model.count.item()}, {"a/b picture": picture})


class ToyAdversary(nn.Module):
    """Judges outputs of a `ToyModel`; keeps a running mean of its judgement of real ones."""

    mean_real: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 1))
        self.register_buffer("mean_real", torch.zeros(()))

    def forward(self, y: Tensor) -> Tensor:
        return self.layers(y)


class DuelStage(ToyStage):
    """The toy with an adversary that tells outputs from targets."""

    def __init__(
        self, noise: bool = True, rows: int = 8, nan_at: int = -1, share: float = 0.5, **game: Any
    ) -> None:
        super().__init__(noise, rows, nan_at)
        self.share = share
        settings = {"optimizer": OptimizerConfig(lr=3e-3)} | game
        self.adversary_config = AdversaryConfig.model_validate(settings)
        torch.manual_seed(5)
        self.adversary = ToyAdversary()
        if not noise:
            self.adversary.layers[2] = nn.Identity()
        self.seen: list[Tensor] = []  # mean judgement of real outputs, a part each
        self.made: tuple[Tensor, Tensor] | None = None

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, label, y = batch
        if self.noise:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        out = model(x, label)
        self.made = (y, out)
        mse, l1 = (out - y).square().mean(), (out - y).abs().mean()
        return mse + 0.1 * l1, {"mse": mse, "l1": l1}

    def loss_against(
        self, model: nn.Module, adversary: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert not adversary.training and not any(p.requires_grad for p in adversary.parameters())
        loss, terms = self.loss(model, batch, generator)
        assert self.made is not None
        fooled = nn.functional.softplus(-adversary(self.made[1])).mean()
        return loss + self.share * fooled, terms | {"fooled": fooled}

    def adversary_loss(
        self, adversary: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.made is not None
        real, fake = self.made[0], self.made[1].detach()
        logits = adversary(torch.cat([real, fake]))
        if self.noise:
            logits = logits + 0.1 * torch.randn(logits.shape, generator=generator)
        judged_real, judged_fake = logits.chunk(2)
        self.seen.append(judged_real.detach().mean())
        loss = nn.functional.softplus(torch.cat([-judged_real, judged_fake])).mean()
        # against the running mean, so that a lost buffer changes the weights
        drift = (judged_real - self.adversary.mean_real).square().mean()
        return loss + 0.1 * drift, {"drift": drift}

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        super().after_step(model, step, generator)
        if self.seen:
            mean = mean_over_processes(torch.stack(self.seen).mean())
            self.adversary.mean_real.lerp_(mean, 0.2)
            self.seen = []
