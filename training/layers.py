"""The layers of a model: units of activation checkpointing and of sharding.

A model exposes them by the name of its list: every entry of an `nn.ModuleList` called `layers`, at
any depth, is one. Such a layer is called, and its parameters are used only while it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from evatok.core.config import ConfigError

NAME = "layers"


def layers_of(model: nn.Module) -> list[nn.Module]:
    """All layers of a model, an empty list where it has none."""
    return [
        layer
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == NAME and isinstance(module, nn.ModuleList)
        for layer in module
    ]


def check_layers(model: nn.Module, setting: str) -> None:
    """Refuse a model without layers for a setting that is about them.

    Raises:
        ConfigError: names the setting.
    """
    if not layers_of(model):
        raise ConfigError(f"{setting}: {type(model).__name__} has no layers, set it back")


@contextmanager
def checkpoint_activations(model: nn.Module) -> Iterator[None]:
    """Keep only what goes into each layer, and compute the rest again in the backward pass.

    A third more computation for a fraction of the memory; the gradients are the same bits.
    Outside of a backward pass, as in validation, nothing changes.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
