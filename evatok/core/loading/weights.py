"""Safetensors files against the module that they are for: header first, then every value.

Names, shapes and kinds of number are compared with what the file's header declares before a tensor
is read. Nothing is left at its initial value, and nothing is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evatok.core.errors import EvatokError, MissingFileError

FLOATS = ("F16", "BF16", "F32", "F64")
INTEGERS = ("I8", "I16", "I32", "I64", "U8", "BOOL")


class ModelFileError(EvatokError):
    """A model's file that is there and cannot be used; the message names file and remedy."""


@dataclass(frozen=True)
class Declared:
    """Entry of the header for a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it


def read_header(path: Path, remedy: str) -> dict[str, Declared]:
    """Return what a safetensors file declares; it is as long as its header says.

    Args:
        path: of the file.
        remedy: what the user can do, in the imperative.

    Raises:
        FileNotFoundError: no such file.
        ModelFileError: it is no whole safetensors file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: {remedy}")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Declared(tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
    raise ModelFileError(f"{path} is no whole safetensors file ({reason}): {remedy}")


def difference(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]
) -> str | None:
    """Return how names and shapes of tensors differ from those wanted, in a line; None if not."""
    missing, unexpected = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    other = [name for name in sorted(wanted.keys() & found) if [*found[name]] != [*wanted[name]]]
    if other:
        shapes = f"{other[0]} is {tuple(found[other[0]])}, not {tuple(wanted[other[0]])}"
        told.append(f"{len(other)} of another shape ({shapes})")
    return "; ".join(told) or None


def read_weights(path: Path, wanted: Mapping[str, Tensor], remedy: str) -> dict[str, Tensor]:
    """Read the tensors of a module's state, all of them and no others.

    Args:
        path: a safetensors file.
        wanted: the state dict to fill; on the meta device, so that nothing is allocated before the
            file is known to fit. Any floating-point type in the file serves any other.
        remedy: what the user can do, in the imperative.

    Returns:
        Tensors by name, on the CPU, as stored.

    Raises:
        FileNotFoundError: no such file.
        ModelFileError: damaged, of another module, or with values that are not finite.
    """
    header = read_header(path, remedy)
    shapes = {name: declared.shape for name, declared in header.items()}
    wrong = difference(shapes, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if wrong is None:
        wrong = _other_numbers(header, wanted)
    if wrong is not None:
        raise ModelFileError(f"{path} is not of the model in its config.json: {wrong}: {remedy}")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in header}
    check_finite(tensors, path, remedy)
    return tensors


def _other_numbers(header: Mapping[str, Declared], wanted: Mapping[str, Tensor]) -> str | None:
    for name, tensor in wanted.items():
        fitting = FLOATS if tensor.is_floating_point() else INTEGERS
        if header[name].dtype not in fitting:
            return f"{name} is {header[name].dtype}, not one of {', '.join(fitting)}"
    return None


def check_finite(tensors: Mapping[str, Tensor], source: Path | str, remedy: str) -> None:
    """Refuse tensors that hold NaN or infinity; one pass, nothing is copied.

    Raises:
        ModelFileError: names the first one.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor)  # NaN goes through
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelFileError(f"{source}: {name} holds values that are not finite: {remedy}")
