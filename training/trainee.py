"""One trained module of a run: its optimisers, rate and gradient.

A stage trains its model, and may train an adversary (`training.stage.Adversarial`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evatok.core.config import OptimizerConfig, ScheduleConfig
from training.compilation import compile_parts
from training.optimization.optimizer import (
    build_optimizers,
    load_state_tensors,
    set_rates,
    state_tensors,
)
from training.optimization.schedule import multiplier
from training.sharding import average_gradients, clip_gradients, full_tensor, is_sharded, shard_like


class Trainee:
    """A module in training.

    Attributes:
        module: on the device where it trains.
        net: what its own losses call: the module, perhaps compiled and wrapped for processes.
        critic: what the other side's losses call: the module, perhaps compiled.
        steps: of the run, at which it learns.
        prefix: of the names of its loss and gradient norm in the log.
        optimizers: of all its parameters that are trained, `parameters`.
        is_sharded: whether some of these are sharded over processes, see `training.sharding`.
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
        self.critic: Any = module
        self.config, self.schedule = optimizer, schedule
        self.optimizers = build_optimizers(module, optimizer)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.is_sharded = any(map(is_sharded, self.parameters))

    def prepare(self, wrapped: bool, compiled: bool) -> None:
        """Switch to train mode, wrap for several processes unless sharded over them, compile."""
        self.module.train()
        self.net = self.critic = self.module
        if wrapped and not self.is_sharded:
            self.net = DistributedDataParallel(self.module)
        if compiled and not compile_parts(self.module):
            self.net, self.critic = torch.compile(self.net), torch.compile(self.module)

    def is_active(self, step: int) -> bool:
        """Whether a step of the run comes after the start of this trainee."""
        return step >= self.steps.start

    def factor(self, step: int) -> float:
        """Factor on the peak rates; the schedule begins with the trainee."""
        start, stop = self.steps.start, self.steps.stop
        return multiplier(self.schedule, step - start, stop - start)

    def learning_rate(self, step: int) -> float:
        """The rate of a step of the run, Muon's apart."""
        return self.config.lr * self.factor(step)

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Forward and backward of a part of a step; the last one joins all processes' gradients."""
        if self.is_sharded:
            self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        no_sync = getattr(self.net, "no_sync", nullcontext)  # of what is wrapped for processes
        with nullcontext() if last else no_sync():
            yield
        if last and self.is_sharded:
            average_gradients(self.parameters)

    def clip(self) -> Tensor:
        """Clip the gradient; its global norm before."""
        limit = self.config.grad_clip
        if self.is_sharded:
            return clip_gradients(self.parameters, limit)
        if limit:
            return nn.utils.clip_grad_norm_(self.parameters, limit).detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients).detach()

    def update(self, step: int) -> None:
        """Take the optimisers' step of a step of the run, and forget the gradient."""
        set_rates(self.optimizers, self.factor(step))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the module while the other trainee backpropagates through it.

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

    def state(self) -> dict[str, Tensor]:
        """The module's state dict, whole; all processes must call this."""
        return {name: full_tensor(value) for name, value in self.module.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimisers' state as `state_tensors` names it, whole; likewise."""
        return {name: full_tensor(value) for name, value in state_tensors(self.optimizers).items()}

    def load(self, state: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Put both back.

        Raises:
            RuntimeError: names or shapes do not fit the module.
        """
        own = self.module.state_dict()
        self.module.load_state_dict(
            {n: shard_like(value, own[n]) if n in own else value for n, value in state.items()}
        )
        load_state_tensors(self.optimizers, optimizer_state)
