"""The exponential average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.sharding import full_tensor, local_rows, shard_like


class EMA:
    """Average of a module's parameters over its steps; buffers are the module's own.

    Attributes:
        values: one for each of the module's parameters, sharded as it is.
    """

    def __init__(self, source: nn.Module, decay: float, copy: nn.Module | None = None) -> None:
        """Begin with the module as it is.

        Args:
            source: what is averaged.
            decay: share of the old average that stays at a step.
            copy: of the source, whose parameters are to be the values; they stand alone if None.
        """
        self.source, self.decay = source, decay
        self.copy = None if copy is None else copy.requires_grad_(False)
        self.values: list[Tensor] = []
        if copy is None:
            self.values = [parameter.detach().clone() for parameter in source.parameters()]
        else:
            self.values += copy.parameters()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the source after optimiser step number `step` (1 for the first)."""
        # short runs: an average over the first steps would be mostly initial weights
        decay = min(self.decay, (1 + step) / (10 + step))
        values = [local_rows(value) for value in self.values]
        sources = [local_rows(parameter) for parameter in self.source.parameters()]
        torch._foreach_lerp_(values, sources, 1 - decay)  # type: ignore

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Give the copy the source's buffers."""
        if self.copy is not None:
            for mine, theirs in zip(self.copy.buffers(), self.source.buffers(), strict=True):
                mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """State dict of the source with averaged parameters; all processes must call this."""
        averaged = dict(zip(map(id, self.source.parameters()), self.values, strict=True))
        state: dict[str, Tensor] = self.source.state_dict(
            keep_vars=True
        )  # tied weights have several names
        return {n: full_tensor(averaged.get(id(own), own.detach())) for n, own in state.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises:
            RuntimeError: it is not of this module.
        """
        names = {id(own): name for name, own in self.source.state_dict(keep_vars=True).items()}
        for value, parameter in zip(self.values, self.source.parameters(), strict=True):
            name = names[id(parameter)]
            if name not in state or state[name].shape != value.shape:
                raise RuntimeError(f"no average of {name}, {tuple(value.shape)}")
            value.copy_(shard_like(state[name], parameter))
