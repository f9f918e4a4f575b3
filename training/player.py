"""What one side of a training owns: a module, its optimisers, its rate, its gradient.

A stage has one player, its model, or a second one, an adversary (`training.stage.Adversarial`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig, ScheduleConfig
from training.optimizer import build_optimizers, set_rates
from training.schedule import multiplier


class Player:
    """A module in training.

    Attributes:
        module: on the device where it trains.
        net: what its own losses call: the module, perhaps compiled and wrapped for processes.
        judge: what the other side's losses call: the module, perhaps compiled.
        steps: of the run, at which it learns.
        prefix: of the names of its loss and gradient norm in the log.
        optimizers: of all its parameters that are trained, `parameters`.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        steps: range,
        prefix: str = "",
    ) -> None:
        self.module, self.steps, self.prefix = module, steps, prefix
        self.net: Any = module
        self.judge: Any = module
        self.config, self.schedule = optimizer, schedule
        self.optimizers = build_optimizers(module, optimizer)
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def prepare(self, wrap: Callable[[nn.Module], nn.Module], compiled: bool) -> None:
        """Switch to train mode, wrap for several processes, compile."""
        self.net, self.judge = wrap(self.module.train()), self.module
        if compiled:
            self.net, self.judge = torch.compile(self.net), torch.compile(self.module)

    def plays(self, step: int) -> bool:
        """Whether a step of the run is one with this player, be it without learning."""
        return step >= self.steps.start

    def factor(self, step: int) -> float:
        """What the peak rates are multiplied by; the schedule begins with the player."""
        start, stop = self.steps.start, self.steps.stop
        return multiplier(self.schedule, step - start, stop - start)

    def learning_rate(self, step: int) -> float:
        """The rate of a step of the run, Muon's apart."""
        return self.config.lr * self.factor(step)

    def clip(self) -> Tensor:
        """Clip the gradient; its global norm before."""
        limit = self.config.grad_clip
        if limit:
            return nn.utils.clip_grad_norm_(self.parameters, limit).detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients).detach()

    def move(self, step: int) -> None:
        """Take the optimisers' step of a step of the run, and forget the gradient."""
        set_rates(self.optimizers, self.factor(step))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the other side look through the module, in eval mode and without its gradient.

        Spans forward and backward: gradients pass to the input, none is computed for parameters.
        """
        training = self.module.training
        self.module.eval()
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            self.module.train(training)
