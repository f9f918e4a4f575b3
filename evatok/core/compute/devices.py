"""Names of devices, and where a model is."""

from __future__ import annotations

import os

import torch
from torch import nn

from evatok.core.errors import EvatokError

NO_FLOAT64 = frozenset({"mps"})  # kinds of device: Apple's GPUs


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name, after a look whether it is there.

    `cuda` without a number is the first GPU; of several processes that a launcher has started
    (LOCAL_RANK) each takes its own. A CUDA device also becomes the current one of this process,
    on which graphs and kernels of other libraries run.

    Args:
        name: auto (a CUDA GPU, else Apple's, else the CPU), cpu, cuda, cuda:1, mps, or any other
            kind that this PyTorch knows.

    Raises:
        EvatokError: no such device here, or one GPU named for several processes.
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        count = 1 if device.type == "cpu" else torch.get_device_module(device).device_count()
    except (RuntimeError, AttributeError) as error:
        raise EvatokError(
            f"device {name!r}: give auto, cpu, cuda, cuda:1 for the second GPU, or mps"
        ) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= count:
        raise EvatokError(
            f"device {name}: PyTorch sees {count} {device.type} devices here; use cpu"
        )
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EvatokError(
            f"device {name}: several processes cannot share one: give {device.type}, of which each "
            "takes its own"
        )
    if device.index is None and device.type != "mps":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % count)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type not in NO_FLOAT64


def float64_device(device: torch.device) -> torch.device:
    """Return the device itself, or the CPU where it has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Return where the parameters of a model are."""
    return next(model.parameters()).device
