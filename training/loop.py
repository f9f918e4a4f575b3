"""The one training loop; all of accelerate is in this file.

It counts optimiser steps and knows nothing of video. Batches, random numbers and learning rates
are functions of the step, and everything else is in the checkpoint: a run that is killed at any
moment and started again ends with the same weights, bit for bit (on a CPU in float32).
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training import checkpoint
from training.checkpoint import Checkpoint
from training.config import Config, ConfigError, TrainConfig, save_config
from training.logs import ProgressDisplay, RunLog
from training.optimizer import build_optimizers, load_state_tensors, set_rates, state_tensors
from training.precision import fast_float32
from training.rundir import SETTINGS, TrainingError, alone, compare_settings, git_hash, place_of
from training.schedule import multiplier
from training.stage import Stage, StageBase, Validation, Weighted

__all__ = ["Stage", "StageBase", "TrainingError", "Validation", "Weighted", "train"]

# What may differ when a run is taken up again: it changes no step that was taken.
MAY_CHANGE = frozenset(
    {"steps", "num_workers", "log_every", "validate_every", "save_every", "keep_checkpoints"}
)
AFTER_STEP = -1  # in the place of a rank: the generator which all ranks share


def train(
    stage: Stage, config: TrainConfig, run_dir: Path | str, resolved: Config | None = None
) -> nn.Module:
    """Train a stage's model, from its latest checkpoint if there is one.

    Writes run_dir/{config.yaml, log.jsonl, tensorboard/, images/, checkpoints/}. A finished run
    returns at once.

    Args:
        stage: built from the config alone, see `training.stage.Stage`.
        config: steps, precision, optimiser, how often to log, validate and save.
        run_dir: folder of this run; made if absent.
        resolved: the whole settings that `config` is a part of, written to config.yaml.

    Returns:
        The averaged weights in a copy of `stage.model`, or `stage.model` without averaging; in
        eval mode.

    Raises:
        ConfigError: the run was begun with other settings (`MAY_CHANGE` may differ, `steps` only
            upwards), or the batch cannot be cut evenly.
        TrainingError: the loss is not finite, or another process trains in this folder.
        CheckpointError: the checkpoint does not fit the model.
    """
    run_dir = Path(run_dir)
    with ExitStack() as stack:
        run = Run(stage, config, run_dir, config if resolved is None else resolved)
        stack.enter_context(fast_float32(run.device))
        if run.is_main:
            stack.enter_context(alone(run_dir))
        run.resume()
        if run.step < config.steps:
            run.train()
        return run.result()


class Run:
    """State of one run: model, average, optimisers, and sums for the next log row."""

    def __init__(self, stage: Stage, config: TrainConfig, run_dir: Path, resolved: Config) -> None:
        # Its own mixed precision is off: that would replace `model.forward`, and the copy for the
        # average would call the forward of the original. `_autocast` does the same in one place.
        self.accelerator = Accelerator(mixed_precision="no")
        self.stage, self.config, self.run_dir, self.resolved = stage, config, run_dir, resolved
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        if config.batch_size % (self.world * config.grad_accumulation):
            raise ConfigError(
                f"train.batch_size {config.batch_size} is not divisible by {self.world} processes "
                f"× grad_accumulation {config.grad_accumulation}"
            )
        self.weighted = stage if isinstance(stage, Weighted) else None
        self.step = 0
        self.seconds = 0.0  # spent on the run so far, over all processes that worked on it
        self.metrics: dict[str, float] = {}  # of the last validation
        self.sums: dict[str, tuple[Tensor | float, int]] = {}  # since the last log row
        self.model = stage.model.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        self.averaged = list(self.model.parameters())
        self.averages = [] if self.ema is None else list(self.ema.parameters())
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.git = git_hash()

    # --- starting and stopping ---

    def resume(self) -> None:
        """Take up the latest checkpoint and write the settings."""
        path = checkpoint.latest(self.run_dir)
        if path is not None:
            prefix = place_of(self.config, self.resolved)
            free = {prefix + name for name in MAY_CHANGE}
            compare_settings(self.run_dir, self.resolved, free)
            self._restore(checkpoint.load(path), path)
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.is_main:
            save_config(self.resolved, self.run_dir / SETTINGS)

    def _restore(self, saved: Checkpoint, path: Path) -> None:
        if saved.step > self.config.steps:
            raise ConfigError(
                f"{path} is already at step {saved.step}, beyond train.steps {self.config.steps}"
            )
        try:
            self.model.load_state_dict(saved.model)
            if self.ema is not None:
                self.ema.load_state_dict(saved.ema)
        except RuntimeError as error:  # names or shapes
            raise checkpoint.CheckpointError(f"{path} does not fit the model: {error}") from error
        load_state_tensors(self.optimizers, saved.optimizer)
        self.step = saved.step
        self.seconds = saved.state["seconds"]
        self.metrics = saved.state["metrics"]
        self.sums = {k: (value, count) for k, (value, count) in saved.state["sums"].items()}

    def result(self) -> nn.Module:
        """The model to use, in eval mode."""
        return (self.model if self.ema is None else self.ema).eval()

    def _save(self, log: RunLog | None) -> None:
        totals = self._totals()
        if log is not None:
            log.sync()
            saved = self._checkpoint(totals)
            checkpoint.save(self.run_dir, saved, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, totals: dict[str, float]) -> Checkpoint:
        if self.ema is not None:
            self._copy_buffers()
        state = {
            "config": self.resolved.model_dump(mode="json"),
            "git": self.git,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "sums": {name: (total, self.sums[name][1]) for name, total in totals.items()},
        }
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            ema={} if self.ema is None else self.ema.state_dict(),
            optimizer=state_tensors(self.optimizers),
            state=state,
        )

    # --- the loop ---

    def train(self) -> None:
        """Take the steps that are left."""
        config = self.config
        net: Any = self.accelerator.prepare_model(self.model.train())
        if config.compile:
            net = torch.compile(net)
        with ExitStack() as stack:
            log = stack.enter_context(RunLog(self.run_dir, self.step)) if self.is_main else None
            display = ProgressDisplay(self.run_dir.name, self.step, config.steps, self.is_main)
            stack.callback(display.close)
            if self.step:
                display.say(f"goes on from step {self.step}")
            before, start = self.seconds, time.perf_counter()
            mark, mark_step = start, self.step  # the speed shown leaves out validating and saving
            for batch in self._batches():
                logs_now = self._is_due(config.log_every, self.step + 1)
                saves_now = self._is_due(config.save_every, self.step + 1)
                validates_now = config.validate_every > 0 and (
                    self._is_due(config.validate_every, self.step + 1)
                )
                self._optimise(net, batch, check=logs_now or saves_now or validates_now)
                self.step += 1
                self._after_step()
                now = time.perf_counter()
                self.seconds = before + now - start
                if logs_now:
                    self._log(log, display, (self.step - mark_step) / (now - mark))
                    mark, mark_step = now, self.step
                if validates_now:
                    self._validate(log, display)
                if saves_now:
                    self._save(log)
                mark += time.perf_counter() - now

    def _is_due(self, every: int, step: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _batches(self) -> Iterator[Any]:
        workers = self.config.num_workers
        return iter(
            DataLoader(
                _Steps(self.stage, self.rank, self.world),
                batch_size=None,
                sampler=range(self.step, self.config.steps),  # type: ignore[arg-type]
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                # a generator of its own: otherwise it takes a number from the global one
                generator=torch.Generator().manual_seed(0),
            )
        )

    def _optimise(self, net: nn.Module, batch: Any, check: bool) -> None:
        """One optimiser step, forward to weights."""
        stage, config, accelerator = self.stage, self.config, self.accelerator
        seed = mixed_seed(config.seed, self.step, self.rank)
        _seed_everything(seed, self.device)
        generator = torch.Generator().manual_seed(seed)
        parts: Sequence[Any] = [batch]
        if config.grad_accumulation > 1:
            parts = stage.split(batch, config.grad_accumulation)
        weights = self._weights(parts)
        factor = multiplier(config.schedule, self.step, config.steps)
        set_rates(self.optimizers, factor)
        terms: dict[str, Tensor] = {}
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            last = index == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(net):
                part = send_to_device(part, self.device)
                with self._autocast():
                    loss, logs = stage.loss(net, part, generator)
                if "loss" in logs:
                    raise ValueError('a stage logs "loss", the name of the sum that is minimised')
                accelerator.backward(loss if weight == 1 else loss * weight)
            for name, value in {"loss": loss, **logs}.items():
                value = value.detach().float()
                value = value if weight == 1 else value * weight
                terms[name] = terms[name] + value if name in terms else value
        terms["grad_norm"] = self._clip()
        for name, value in terms.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if check or self.device.type == "cpu":  # elsewhere asking makes the device wait
            self._refuse_non_finite()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def _weights(self, parts: Sequence[Any]) -> list[float]:
        """What each part's loss counts, 1 / parts unless the stage weighs them.

        Gradients are averaged over processes, so weights of all processes add up to their number.
        """
        if self.weighted is None:
            return [1.0 / len(parts)] * len(parts)
        own = [float(self.weighted.weight(part)) for part in parts]
        total = sum(own)
        if self.world > 1:
            tensor = torch.tensor(total, dtype=torch.float64, device=self.device)
            total = float(self.accelerator.reduce(tensor, "mean"))  # type: ignore[arg-type]
        return [weight / total for weight in own]

    def _clip(self) -> Tensor:
        """The global gradient norm before clipping."""
        limit = self.config.optimizer.grad_clip
        if limit:
            norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
            assert norm is not None
            return norm.detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).detach()

    def _refuse_non_finite(self) -> None:
        """Stop before non-finite gradients reach the weights, or at least a checkpoint."""
        if math.isfinite(float(self.sums["loss"][0] + self.sums["grad_norm"][0])):
            return
        bad = [name for name, (total, _) in self.sums.items() if not math.isfinite(float(total))]
        when = "at" if self.device.type == "cpu" else "at or shortly before"
        good = checkpoint.latest(self.run_dir)
        raise TrainingError(
            f"{self.run_dir}: not finite {when} step {self.step + 1}: {', '.join(bad)}; "
            f"the last checkpoint is {good.name if good else 'none'}; "
            f"lower train.optimizer.lr, or set train.optimizer.grad_clip"
        )

    @torch.no_grad()
    def _after_step(self) -> None:
        tensors = [*self.model.parameters(), *self.model.buffers()] if self.world > 1 else []
        versions = [tensor._version for tensor in tensors]
        seed = mixed_seed(self.config.seed, self.step, AFTER_STEP)
        self.stage.after_step(self.model, self.step, torch.Generator().manual_seed(seed))
        if self.world > 1:
            changed = [t._version != v for t, v in zip(tensors, versions, strict=True)]
            self._share(tensors, changed)
        if self.ema is not None:
            # short runs: an average over the first steps would be mostly initial weights
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.averages, self.averaged, 1 - decay)  # type: ignore

    def _share(self, tensors: list[Tensor], changed: list[bool]) -> None:
        """Give all processes rank 0's values of tensors that any of them changed."""
        flags = torch.tensor(changed, dtype=torch.float32, device=self.device)
        flags = self.accelerator.reduce(flags, "sum")
        assert isinstance(flags, Tensor)
        for tensor, flag in zip(tensors, flags.tolist(), strict=True):
            if flag:
                torch.distributed.broadcast(tensor, src=0)

    def _copy_buffers(self) -> None:
        assert self.ema is not None
        for mine, theirs in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    # --- looking at it ---

    def _log(self, log: RunLog | None, display: ProgressDisplay, rate: float) -> None:
        row = {name: total / self.sums[name][1] for name, total in self._totals().items()}
        terms = {"loss": row.pop("loss"), **row}
        self.sums = {}
        display.update(self.step, rate, terms)
        if log is not None:
            rates = {"lr": self.config.optimizer.lr * self._factor(), "steps_per_second": rate}
            log.write("train", self.step, {**terms, **rates, "seconds": self.seconds})

    def _totals(self) -> dict[str, float]:
        """Sums since the last log row, averaged over processes."""
        names = sorted(self.sums)
        totals = [torch.as_tensor(self.sums[name][0], device=self.device) for name in names]
        if not totals:
            return {}
        reduced = self.accelerator.reduce(torch.stack(totals), "mean")
        assert isinstance(reduced, Tensor)
        return dict(zip(names, reduced.tolist(), strict=True))

    def _factor(self) -> float:
        return multiplier(self.config.schedule, self.step - 1, self.config.steps)

    @torch.no_grad()
    def _validate(self, log: RunLog | None, display: ProgressDisplay) -> None:
        if log is not None:
            if self.ema is not None:
                self._copy_buffers()
            model = self.result()
            found = self.stage.validate(model, self.step)
            self.model.train()
            self.metrics = {name: float(value) for name, value in found.scalars.items()}
            log.write("validation", self.step, self.metrics)
            log.pictures(self.step, found.images)
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            display.say(f"validation at step {self.step}  {numbers}")
        self.accelerator.wait_for_everyone()


class _Steps(Dataset):
    """Batch of step i as item i: what a DataLoader makes ahead of time, in order."""

    def __init__(self, stage: Stage, rank: int, world: int) -> None:
        self.stage, self.rank, self.world = stage, rank, world

    def __getitem__(self, step: int) -> Any:
        return self.stage.batch(step, self.rank, self.world)


def mixed_seed(seed: int, step: int, rank: int) -> int:
    """One seed out of three numbers, unrelated to that of their neighbours."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits


def _seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, which dropout draws from.

    Not torch.manual_seed: without CUDA that formats a stack trace at each call, 1 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
