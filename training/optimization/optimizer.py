"""Assignment of parameters to optimisers and weight decay.

By shape and by what the modules say of themselves, never by how a parameter happens to be called:
a class names in `looked_up` its parameters whose rows are looked up, not multiplied, and in
`output_layers` what makes its output (dotted names below it). nn.Embedding needs no word.

| parameter | adamw | muon | weight decay |
| --- | --- | --- | --- |
| 0 or 1 dimensions: biases, gains | AdamW | AdamW | no |
| looked up: embeddings, codebooks, positions | AdamW | AdamW | no |
| output layers | AdamW | AdamW | yes |
| convolutions, 3 dimensions and more | AdamW | AdamW | yes |
| other matrices | AdamW | Muon | yes |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evatok.core.config import OptimizerConfig
from evatok.core.errors import EvatokError
from training.optimization.muon import Muon
from training.sharding import is_sharded, shard_like


def looked_up(model: nn.Module) -> set[str]:
    """Names of parameters whose rows are looked up."""
    embeddings = {
        f"{prefix}.weight".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    return embeddings | _named(model, "looked_up")


def output_layers(model: nn.Module) -> set[str]:
    """Names of the parameters of output layers."""
    return _named(model, "output_layers")


def _named(model: nn.Module, attribute: str) -> set[str]:
    """Names of all parameters at or below what the modules name in an attribute of theirs."""
    wholes = tuple(
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in getattr(module, attribute, ())
    )
    return {
        name
        for name, _ in model.named_parameters()
        if any(name == whole or name.startswith(f"{whole}.") for whole in wholes)
    }


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Make the optimisers of a model's trainable parameters.

    Every group carries "names", the parameters' names, and "peak_lr", which a schedule multiplies.
    Muon takes updates scaled to AdamW's size (Liu et al., arXiv:2502.16982), so that `lr` suits
    both.

    Args:
        model: on the device where it will train.
        config: rates and decay.

    Returns:
        AdamW alone, or Muon and AdamW; one that would have no parameters is left out.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise EvatokError(f"{type(model).__name__} has no parameter to train")
    lookups = looked_up(model)
    hidden: list[tuple[str, Tensor]] = []
    if config.name == "muon":
        ends = lookups | output_layers(model)
        hidden = [(name, p) for name, p in named if p.ndim == 2 and name not in ends]
    taken = {name for name, _ in hidden}
    rest = [(name, p) for name, p in named if name not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        muon_lr = config.lr if config.muon_lr is None else config.muon_lr
        groups = _groups(hidden, muon_lr, config.weight_decay)
        optimizers.append(Muon(groups, lr=muon_lr, adjust_lr_fn="match_rms_adamw"))
    if rest:
        decayed = [(name, p) for name, p in rest if p.ndim >= 2 and name not in lookups]
        plain = [(name, p) for name, p in rest if p.ndim < 2 or name in lookups]
        groups = _groups(decayed, config.lr, config.weight_decay) + _groups(plain, config.lr, 0.0)
        # fused: one call for all tensors; the default on CPU is a Python loop over them
        fused = all(p.device.type in ("cpu", "cuda") for _, p in rest)
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        optimizers.append(adamw)
    return optimizers


def _groups(named: Sequence[tuple[str, Tensor]], lr: float, decay: float) -> list[dict]:
    """A group, or two: kernels over many tensors take none together that are sharded and whole."""
    groups = []
    for kind in (False, True):
        members = [(name, p) for name, p in named if is_sharded(p) == kind]
        if members:
            groups.append(
                {
                    "params": [p for _, p in members],
                    "names": [name for name, _ in members],
                    "peak_lr": lr,
                    "lr": lr,
                    "weight_decay": decay,
                }
            )
    return groups


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to its peak times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def state_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All state as flat tensors named "parameter::key", for instance "head.bias::exp_avg"."""
    flat = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in optimizer.state.get(parameter, {}).items():
                    flat[f"{name}::{key}"] = value
    return flat


def load_state_tensors(
    optimizers: Sequence[torch.optim.Optimizer], flat: dict[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave; rates and groups stay as they were built."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, value in flat.items():
        name, _, key = full.rpartition("::")
        by_name.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        named = [
            pair
            for group in optimizer.param_groups
            for pair in zip(group["names"], group["params"], strict=True)
        ]
        state = {
            i: {key: shard_like(value, parameter) for key, value in by_name[name].items()}
            for i, (name, parameter) in enumerate(named)
            if name in by_name
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
