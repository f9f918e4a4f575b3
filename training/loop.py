"""The one training loop.

It counts optimiser steps and knows nothing of video. Batches, random numbers and learning rates
are functions of the step, and everything else is in the checkpoint: a run that is killed at any
moment and started again ends with the same weights, bit for bit (on a CPU in float32).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evatok.core.compute.devices import resolve_device
from evatok.core.compute.precision import bfloat16_autocast, fast_float32_matmul
from evatok.core.compute.seeds import mixed_seed, seed_everything
from evatok.core.config import Config, ConfigError, TrainConfig, save_config
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import (
    RankInfo,
    first_says,
    joined,
    mean_over_processes,
    share_changed,
    wait_for_all,
)
from training.compilation import parts_of
from training.data_order import batches, to_device
from training.layers import check_layers, checkpoint_activations
from training.optimization.ema import EMA
from training.runs import checkpoint
from training.runs.checkpoint import Checkpoint
from training.runs.run_folder import (
    DATA_MAY_CHANGE,
    MAY_CHANGE,
    SETTINGS,
    TrainingError,
    compare_settings,
    config_prefix,
    git_hash,
    run_lock,
)
from training.runs.run_log import ProgressDisplay, RunLog
from training.runs.trackers import Trackers
from training.sharding import is_sharded, shard
from training.stage import Adversarial, Stage, StageBase, Validation, Weighted
from training.trainee import Trainee

__all__ = ["Adversarial", "Stage", "StageBase", "TrainingError", "Validation", "Weighted", "train"]

AFTER_STEP = -1  # in the place of a rank: the generator which all ranks share


def train(
    stage: Stage,
    config: TrainConfig,
    run_dir: Path | str,
    resolved: Config | None = None,
    export: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    """Train a stage's model, from its latest checkpoint if there is one.

    Writes run_dir/{config.yaml, log.jsonl, tensorboard/, images/, checkpoints/}. A finished run
    returns at once. Processes that a launcher has started
    (`evatok.core.processes.distributed`) train together.

    Args:
        stage: built from the config alone, see `training.stage.Stage`.
        config: steps, precision, optimiser, how often to log, validate and save.
        run_dir: folder of this run; made if absent.
        resolved: the whole settings that `config` is a part of, written to config.yaml.
        export: saves what is returned, while this process holds the folder; the first of several
            processes does.

    Returns:
        The averaged weights in a copy of `stage.model`, or `stage.model` without averaging; in
        eval mode.

    Raises:
        ConfigError: the run was begun with other settings (`run_folder.MAY_CHANGE` and
            `DATA_MAY_CHANGE` may differ, `steps` only upwards), or the batch cannot be cut evenly.
        TrainingError: the loss is not finite, or another process trains in this folder.
        CheckpointError: the checkpoint does not fit the model.
    """
    run_dir = Path(run_dir)
    with ExitStack() as stack:
        device = resolve_device(config.device)
        process = stack.enter_context(joined(device))
        run = Run(stage, config, run_dir, config if resolved is None else resolved, process, device)
        stack.enter_context(fast_float32_matmul(run.device))
        refused: TrainingError | None = None
        if run.is_main:
            try:
                stack.enter_context(run_lock(run_dir))
            except TrainingError as error:
                refused = error
        if not first_says(refused is None):
            raise refused or TrainingError(f"{run_dir}: the first process cannot train there")
        run.resume()
        if run.step < config.steps:
            run.train()
        model = run.result()
        if run.is_main and export is not None:
            export(model)
        wait_for_all()
        return model


class Run:
    """State of one run: the trainees, the model's average, and sums for the next log row."""

    def __init__(
        self,
        stage: Stage,
        config: TrainConfig,
        run_dir: Path,
        resolved: Config,
        process: RankInfo,
        device: torch.device,
    ) -> None:
        self.stage, self.config, self.run_dir, self.resolved = stage, config, run_dir, resolved
        self.device = device
        self.rank, self.world = process.rank, process.world
        self.is_main = self.rank == 0
        if config.batch_size % (self.world * config.grad_accumulation):
            raise ConfigError(
                f"train.batch_size {config.batch_size} is not divisible by {self.world} processes "
                f"× grad_accumulation {config.grad_accumulation}"
            )
        if config.checkpoint_activations:
            check_layers(stage.model, "train.checkpoint_activations")
        if config.sharding == "fsdp":
            check_layers(stage.model, "train.sharding")
            if config.compile and parts_of(stage.model):
                raise ConfigError(
                    "train.compile makes one piece of each of this model's layers, and "
                    "train.sharding fsdp gathers their weights in between: set one of them off"
                )
        self.weighted = stage if isinstance(stage, Weighted) else None
        self.step = 0
        self.seconds = 0.0  # spent on the run so far, over all processes that worked on it
        self.metrics: dict[str, float] = {}  # of the last validation
        self.sums: dict[str, tuple[Tensor | float, int]] = {}  # since the last log row
        self.model = stage.model.to(self.device)
        # what is validated and returned, where that is not the model itself
        self.copy: nn.Module | None = None
        shards = config.sharding == "fsdp" and self.world > 1
        if config.ema_decay or shards:
            self.copy = copy.deepcopy(self.model)
        if shards:
            assert self.copy is not None
            self.copy.cpu()  # no process holds the whole on its device, but while it validates
            shard(self.model)
        self.ema: EMA | None = None
        if config.ema_decay:
            own = None if shards else self.copy
            self.ema = EMA(self.model, config.ema_decay, own)
        steps = range(config.steps)
        self.trainee = Trainee(self.model, config.optimizer, config.schedule, steps)
        self.adversarial = stage if isinstance(stage, Adversarial) else None
        self.adversary = self._adversary()
        self.trainees = [self.trainee] if self.adversary is None else [self.trainee, self.adversary]
        self.git = git_hash()

    def _adversary(self) -> Trainee | None:
        """The second trainee, where the stage has one."""
        if self.adversarial is None or self.adversarial.adversary is None:
            return None
        settings = self.adversarial.adversary_config
        steps = range(settings.start_step, self.config.steps, settings.every)
        module = self.adversarial.adversary.to(self.device)
        return Trainee(module, settings.optimizer, settings.schedule, steps, "adversary_")

    # --- starting and stopping ---

    def resume(self) -> None:
        """Take up the latest checkpoint and write the settings."""
        path = checkpoint.latest(self.run_dir)
        if path is not None:
            prefix = config_prefix(self.config, self.resolved)
            free = {prefix + name for name in MAY_CHANGE} | DATA_MAY_CHANGE
            recorded = compare_settings(self.run_dir, self.resolved, free)
            self._restore(checkpoint.load(path), path)
            planned = recorded.get(prefix + "steps", 0)
            if self.config.steps < planned:  # the learning rate would jump
                raise ConfigError(
                    f"{self.run_dir}: the run is planned for {prefix}steps {planned}, now "
                    f"{self.config.steps}: give {planned} or more, or train in another folder"
                )
        wait_for_all()  # all have read before one writes
        if self.is_main:
            save_config(self.resolved, self.run_dir / SETTINGS)

    def _restore(self, saved: Checkpoint, path: Path) -> None:
        if saved.step > self.config.steps:
            raise ConfigError(
                f"{path} is already at step {saved.step}, beyond train.steps {self.config.steps}"
            )
        try:
            self.trainee.load(saved.model, saved.optimizer)
            if self.ema is not None:
                self.ema.load(saved.ema)
            if self.adversary is not None:
                self.adversary.load(saved.adversary, saved.adversary_optimizer)
        except RuntimeError as error:  # names or shapes
            raise checkpoint.CheckpointError(f"{path} does not fit the model: {error}") from error
        self.step = saved.step
        self.seconds = saved.state["seconds"]
        self.metrics = saved.state["metrics"]
        self.sums = {k: (value, count) for k, (value, count) in saved.state["sums"].items()}

    def result(self) -> nn.Module:
        """The model to use, in eval mode; all processes must call this."""
        if self.copy is None:
            return self.model.eval()
        if self.trainee.is_sharded:
            self.copy.load_state_dict((self.ema or self.trainee).state())
            self.copy.to(self.device)
        elif self.ema is not None:
            self.ema.copy_buffers()
        return self.copy.eval()

    def _save(self, log: RunLog | None) -> None:
        totals = self._totals()
        saved = self._checkpoint(totals)
        if log is not None:
            log.sync()
            checkpoint.save(self.run_dir, saved, self.config.keep_checkpoints)
        wait_for_all()

    def _checkpoint(self, totals: dict[str, float]) -> Checkpoint:
        state = {
            "config": self.resolved.model_dump(mode="json"),
            "git": self.git,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "sums": {name: (total, self.sums[name][1]) for name, total in totals.items()},
        }
        adversary = self.adversary
        return Checkpoint(
            step=self.step,
            model=self.trainee.state(),
            ema={} if self.ema is None else self.ema.state(),
            optimizer=self.trainee.optimizer_state(),
            adversary={} if adversary is None else adversary.state(),
            adversary_optimizer={} if adversary is None else adversary.optimizer_state(),
            state=state,
        )

    # --- the loop ---

    def train(self) -> None:
        """Take the steps that are left."""
        config = self.config
        with ExitStack() as stack:
            for trainee in self.trainees:
                if config.checkpoint_activations:
                    stack.enter_context(checkpoint_activations(trainee.module))
                trainee.prepare(self.world > 1, config.compile)
            log = stack.enter_context(self._run_log()) if self.is_main else None
            display = ProgressDisplay(self.run_dir.name, self.step, config.steps, self.is_main)
            stack.callback(display.close)
            if self.step:
                display.log(f"goes on from step {self.step}")
            before, start = self.seconds, time.perf_counter()
            mark, mark_step = start, self.step  # the speed shown leaves out validating and saving
            for batch in self._batches():
                logs_now = self._is_due(config.log_every, self.step + 1)
                saves_now = self._is_due(config.save_every, self.step + 1)
                validates_now = config.validate_every > 0 and (
                    self._is_due(config.validate_every, self.step + 1)
                )
                self._optimise(batch, check=logs_now or saves_now or validates_now)
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
        steps = range(self.step, self.config.steps)
        workers, pinned = self.config.num_workers, self.device.type == "cuda"
        return batches(self.stage, steps, self.rank, self.world, workers, pinned)

    def _optimise(self, batch: Any, check: bool) -> None:
        """One optimiser step of the model and, in its turn, of the adversary."""
        stage, config, adversary = self.stage, self.config, self.adversary
        seed = mixed_seed(config.seed, self.step, self.rank)
        seed_everything(seed, self.device)
        generator = torch.Generator().manual_seed(seed)
        parts: Sequence[Any] = [batch]
        if config.grad_accumulation > 1:
            parts = stage.split(batch, config.grad_accumulation)
        weights = self._weights(parts)
        learners = [self.trainee]
        if adversary is not None and self.step in adversary.steps:
            learners.append(adversary)
        terms: dict[str, Tensor] = {}
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            part = to_device(part, self.device)
            for trainee in learners:
                with ExitStack() as around:
                    last = index == len(parts) - 1
                    around.enter_context(trainee.part(last))
                    loss, logs = self._loss(trainee, part, generator, around)
                    if "loss" in logs:
                        raise EvatokError(
                            'a stage logs "loss", the name of the sum that is minimised'
                        )
                    (loss if weight == 1 else loss * weight).backward()
                for name, value in {f"{trainee.prefix}loss": loss, **logs}.items():
                    value = value.detach().float()
                    value = value if weight == 1 else value * weight
                    terms[name] = terms[name] + value if name in terms else value
        for trainee in learners:
            terms[f"{trainee.prefix}grad_norm"] = trainee.clip()
        for name, value in terms.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if check or self.device.type == "cpu":  # elsewhere asking makes the device wait
            self._refuse_non_finite()
        for trainee in learners:
            trainee.update(self.step)

    def _loss(
        self, trainee: Trainee, part: Any, generator: torch.Generator, around: ExitStack
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A trainee's loss on a part; what must last until its backward goes into `around`."""
        adversary, against = self.adversary, self.adversarial
        if against is None or adversary is None or not adversary.is_active(self.step):
            with self._autocast():
                return self.stage.loss(trainee.net, part, generator)
        if trainee is adversary:
            with self._autocast():
                return against.adversary_loss(adversary.net, part, generator)
        around.enter_context(adversary.frozen())
        with self._autocast():
            return against.loss_against(trainee.net, adversary.critic, part, generator)

    def _autocast(self) -> torch.autocast:
        return bfloat16_autocast(self.device.type, self.config.precision == "bf16")

    def _weights(self, parts: Sequence[Any]) -> list[float]:
        """Weight of each micro-batch's loss: 1 / number unless the stage weighs them.

        Gradients are averaged over processes, so weights of all processes add up to their number.
        """
        if self.weighted is None:
            return [1.0 / len(parts)] * len(parts)
        own = [float(self.weighted.weight(part)) for part in parts]
        total = sum(own)
        if self.world > 1:
            tensor = torch.tensor(total, dtype=torch.float64, device=self.device)
            total = float(mean_over_processes(tensor))
        return [weight / total for weight in own]

    def _refuse_non_finite(self) -> None:
        """Stop before non-finite gradients reach the weights, or at least a checkpoint."""
        names = [f"{p.prefix}{name}" for p in self.trainees for name in ("loss", "grad_norm")]
        if math.isfinite(float(sum(self.sums[name][0] for name in names if name in self.sums))):
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
        modules = [trainee.module for trainee in self.trainees] if self.world > 1 else []
        tensors = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
        tensors = [tensor for tensor in tensors if not is_sharded(tensor)]
        versions = [tensor._version for tensor in tensors]
        seed = mixed_seed(self.config.seed, self.step, AFTER_STEP)
        self.stage.after_step(self.model, self.step, torch.Generator().manual_seed(seed))
        if self.world > 1:
            changed = [t._version != v for t, v in zip(tensors, versions, strict=True)]
            share_changed(tensors, changed)
        if self.ema is not None:
            self.ema.update(self.step)

    # --- looking at it ---

    def _log(self, log: RunLog | None, display: ProgressDisplay, rate: float) -> None:
        row = {name: total / self.sums[name][1] for name, total in self._totals().items()}
        terms = {"loss": row.pop("loss"), **row}
        self.sums = {}
        display.update(self.step, rate, terms)
        if log is not None:
            playing = [trainee for trainee in self.trainees if trainee.is_active(self.step - 1)]
            rates = {f"{p.prefix}lr": p.learning_rate(self.step - 1) for p in playing}
            timed = {"steps_per_second": rate, "seconds": self.seconds}
            log.write("train", self.step, {**terms, **rates, **timed})

    def _run_log(self) -> RunLog:
        settings = self.resolved.model_dump(mode="json")
        trackers = Trackers(self.config.trackers, self.run_dir, settings)
        return RunLog(self.run_dir, self.step, trackers)

    def _totals(self) -> dict[str, float]:
        """Sums since the last log row, averaged over processes."""
        names = sorted(self.sums)
        totals = [torch.as_tensor(self.sums[name][0], device=self.device) for name in names]
        if not totals:
            return {}
        return dict(zip(names, mean_over_processes(torch.stack(totals)).tolist(), strict=True))

    @torch.no_grad()
    def _validate(self, log: RunLog | None, display: ProgressDisplay) -> None:
        model = self.result()
        if log is not None:
            found = self.stage.validate(model, self.step)
            self.metrics = {name: float(value) for name, value in found.scalars.items()}
            log.write("validation", self.step, self.metrics)
            log.pictures(self.step, found.images)
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            display.log(f"validation at step {self.step}  {numbers}")
        self.model.train()
        if self.copy is not None and self.trainee.is_sharded:
            self.copy.cpu()
        wait_for_all()
