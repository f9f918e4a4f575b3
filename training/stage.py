"""Interface of a training stage: data, a loss, and a look at held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from evatok.core.config import AdversaryConfig
from evatok.core.errors import EvatokError


@dataclass(frozen=True)
class Validation:
    """Results of a stage on held-out data.

    Attributes:
        scalars: name → number.
        images: name → uint8 (H, W, 3) RGB; the name becomes part of a file name.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)


class Stage(Protocol):
    """Something to train. Inherit from `StageBase` for defaults of all but `batch` and `loss`.

    A killed run goes on to the same bits only if the stage is built from the config alone: its
    initial weights from a seed, its batches from the arguments of `batch`. Frozen networks that a
    loss uses are kept outside of `model`, which the loop switches between train and eval mode.
    """

    @property
    def model(self) -> nn.Module:
        """The trained module; an attribute will do."""
        ...

    def batch(self, step: int, rank: int, world: int) -> Any:
        """Rows of process `rank` of `world` for optimiser step `step` (0 for the first).

        A pure function of its arguments and the config: it may run in a worker process and ahead
        of time. What is random in a row (a crop, an assignment) is best drawn here, from a
        generator seeded by (seed, step): then neither processes nor accumulation change it.
        Tensors in tuples, lists or dicts, or an object with `to(device)`.
        """
        ...

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        """Cut a batch into parts that go through the model one after another."""
        ...

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a mean over it, and its terms.

        Args:
            model: `self.model`, perhaps wrapped: call it, reach for no attribute of it.
            batch: one part, on the model's device.
            generator: on the CPU, seeded by (seed, step, rank).

        Returns:
            A scalar to minimise, and scalars to log: unweighted, one name each and none of them
            "loss", the same names on every process.
        """
        ...

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        """Change the model after optimiser step number `step` (1 for the first), without gradient.

        Whatever this needs to remember lives in buffers of the model, which are saved. Write in
        place (`copy_`, `parameter[rows] = ...`): with several processes the loop finds changed
        tensors by their version counters and gives all processes those of rank 0.

        Args:
            model: `self.model`, not wrapped.
            step: optimiser steps taken.
            generator: on the CPU, seeded by (seed, step), equal on all ranks.
        """
        ...

    def validate(self, model: nn.Module, step: int) -> Validation:
        """Look at held-out data with the averaged weights (the raw ones without averaging).

        Runs on rank 0 only, in eval mode, without gradient and in float32. It must not change
        the model. `step` is the number of optimiser steps taken.
        """
        ...

    def exported(self, model: nn.Module) -> nn.Module:
        """The part of a trained `model` that is for use: without what only its training needs."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A stage whose parts can be unequal, such as packed sequences."""

    def weight(self, batch: Any) -> float:
        """Weight of a micro-batch in the step: its rows, or the targets its mean is over."""
        ...


@runtime_checkable
class Adversarial(Protocol):
    """A stage with a second trainee, which learns to tell what the model makes from what is real.

    From `adversary_config.start_step` on, each part of a batch goes through `loss_against` and,
    where it is the adversary's turn to learn, directly afterwards through `adversary_loss`. Both
    sides move once all parts of the step have passed: neither sees the other's new weights.
    The adversary is saved with the run, not averaged and not part of the result.
    """

    @property
    def adversary(self) -> nn.Module | None:
        """Built from the config alone; None = the stage is played by the model alone."""
        ...

    @property
    def adversary_config(self) -> AdversaryConfig:
        """Its training settings."""
        ...

    def loss_against(
        self, model: nn.Module, adversary: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss with the adversary's judgement in it, and its terms; else as `loss`.

        Args:
            model: `self.model`, perhaps wrapped: call it, reach for no attribute of it.
            adversary: `self.adversary`, perhaps compiled; frozen and in eval mode.
            batch: one part, on the model's device.
            generator: on the CPU, seeded by (seed, step, rank).
        """
        ...

    def adversary_loss(
        self, adversary: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversary's own loss on the part that went through `loss_against` just before.

        The stage keeps from there what the model made, so that the model need not run again; it
        must be detached. What of this must be the same on all processes (running means) is written
        in `after_step`.

        Args:
            adversary: `self.adversary`, perhaps wrapped: call it once, reach for no attribute.
            batch: the same part.
            generator: the same, further on.

        Returns:
            A scalar to minimise, and scalars to log, of other names than the model's.
        """
        ...


class StageBase:
    """Defaults of a `Stage`; `model`, `batch` and `loss` remain to be written."""

    model: nn.Module

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        """Cut a tensor, or a tuple or list of tensors, along the first axis."""
        if isinstance(batch, Tensor):
            pieces: Sequence[Any] = batch.chunk(parts)
        else:
            pieces = list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))
        if len(pieces) != parts:
            raise EvatokError(f"the batch has too few rows for {parts} parts")
        return pieces

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        """Leave the model as it is."""

    def validate(self, model: nn.Module, step: int) -> Validation:
        """Nothing to look at."""
        return Validation()

    def exported(self, model: nn.Module) -> nn.Module:
        """All of it."""
        return model
