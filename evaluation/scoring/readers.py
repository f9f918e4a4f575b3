"""Videos of anyone's making under one roof: files, folders of frames, arrays.

| given | gives |
| --- | --- |
| a folder | its video files (see `video.folder`); each subfolder of pictures alone as one video |
| a video file | that video |
| `.npz` | each of its arrays: uint8 (F, H, W, 3), or (N, F, H, W, 3) for N videos |
| `.pt` | a tensor likewise, or (N, 3, F, H, W) of either kind |

Floats are taken as (N, 3, F, H, W) in [−1, 1] only. Nothing is unpickled but plain tensors.

Shape letters: N videos, F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.fetch import file_sha256
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.arrays import iter_npz, read_torch
from video.clips import Size, resize_crop, to_frames
from video.decoding.stills import PICTURES, read_picture
from video.folder import SUFFIXES, files_under, is_video
from video.reading import read_frames

ARRAYS = (".npz", ".pt")


@dataclass(frozen=True)
class Video:
    """One video, not yet read.

    Attributes:
        name: unique within its input.
        read: (number of frames or None for all, side) → (F, side, side, 3) uint8; raises
            `VideoError` or `OSError`.
        digest: sha256 in hex of its content, for caches.
    """

    name: str
    read: Callable[[int | None, Size], Tensor]
    digest: Callable[[], str]


def find_videos(path: str | Path) -> list[Video]:
    """All videos of an input, sorted by name; see the head of this file.

    Raises:
        FileNotFoundError: no such path.
        EvatokError: there is no video in it, or an array of another shape or range.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"no file or folder {path}")
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in ARRAYS:
            return list(_of_arrays(path, path.stem))
        if is_video(path):
            return [_of_file(path, path.name)]
        known = ", ".join(sorted((*SUFFIXES, *ARRAYS)))
        raise EvatokError(f"{path} is none of {known}, nor a folder")
    found: list[Video] = []
    pictures: dict[Path, list[Path]] = {}
    beside: set[Path] = set()
    for file in sorted(files_under(path)):
        name, suffix = file.relative_to(path).as_posix(), file.suffix.lower()
        if is_video(file) or suffix in ARRAYS:
            beside.add(file.parent)
        if is_video(file):
            found.append(_of_file(file, name))
        elif suffix in ARRAYS:
            found += _of_arrays(file, name)
        elif suffix in PICTURES:
            pictures.setdefault(file.parent, []).append(file)
    for folder, files in pictures.items():
        if folder in beside:  # a poster, not frames
            continue
        files.sort(key=_natural)
        found.append(_of_pictures(files, folder.relative_to(path).as_posix()))
    if not found:
        known = ", ".join(sorted((*SUFFIXES, *ARRAYS)))
        raise EvatokError(f"no videos under {path} ({known}, or folders of pictures)")
    return sorted(found, key=lambda video: video.name)


def _natural(path: Path) -> list[str | int]:
    """Frame 2 before frame 10, zeros in front or not."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _of_file(path: Path, name: str) -> Video:
    def read(count: int | None, size: Size) -> Tensor:
        return read_frames(path, 0, count, size)

    return Video(name, read, partial(file_sha256, path))


def _of_pictures(files: list[Path], name: str) -> Video:
    def read(count: int | None, size: Size) -> Tensor:
        pictures = (torch.from_numpy(np.ascontiguousarray(read_picture(f))) for f in files[:count])
        return torch.cat([resize_crop(picture[None], size) for picture in pictures])

    def digest() -> str:
        whole = hashlib.sha256()
        for file in files:
            whole.update(file_sha256(file).encode())
        return whole.hexdigest()

    return Video(name, read, digest)


def _of_arrays(path: Path, name: str) -> Iterator[Video]:
    is_empty = True
    for key, array in _load(path):
        for number, frames in enumerate(_frames(array, path, key)):
            is_empty = False
            yield Video(f"{name}/{key}/{number:06d}", _reader(frames), _hasher(frames))
    if is_empty:
        raise EvatokError(f"{path} holds no arrays")


def _reader(frames: Tensor) -> Callable[[int | None, Size], Tensor]:
    return lambda count, size: resize_crop(_as_bytes(frames)[:count], size)


def _hasher(frames: Tensor) -> Callable[[], str]:
    """Of the pixels and their shape."""

    def digest() -> str:
        pixels = _as_bytes(frames).contiguous().numpy()
        return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    return digest


def _as_bytes(frames: Tensor) -> Tensor:
    """(F, H, W, 3) uint8 of that, or of (3, F, H, W) float in [−1, 1]."""
    return frames if frames.dtype == torch.uint8 else to_frames(frames)


def _load(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Arrays of a file, by name."""
    if path.suffix.lower() == ".npz":
        for key, array in iter_npz(path):
            if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
                raise EvatokError(f"{path}: {key} is {array.dtype}, no array of numbers")
            yield key, torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        return
    loaded = read_torch(path)
    named = loaded if isinstance(loaded, dict) else {"clips": loaded}
    for key in sorted(named, key=str):
        if not isinstance(named[key], Tensor):
            raise EvatokError(f"{path}: {key} is a {type(named[key]).__name__}, no tensor")
        yield str(key), named[key]


def _frames(array: Tensor, path: Path, key: str) -> Tensor:
    """(N, F, H, W, 3) uint8 or (N, 3, F, H, W) float of an array."""
    shape = tuple(array.shape)
    if not array.numel():
        raise EvatokError(f"{path}: {key} is {shape}: there is nothing in it")
    if array.dtype == torch.uint8:
        if array.ndim == 4 and shape[-1] == 3:
            return array[None]
        if array.ndim == 5 and shape[-1] == 3:
            return array
        if array.ndim == 5 and shape[1] == 3:
            return array.permute(0, 2, 3, 4, 1)
    elif array.is_floating_point() and array.ndim == 5 and shape[1] == 3:
        low, high = float(array.min()), float(array.max())
        if -1.001 <= low < 0 and high <= 1.001:  # all at or above 0 would be another range
            return array.float()
        raise EvatokError(
            f"{path}: floats of {key} reach from {low:.4g} to {high:.4g}; they must be in [-1, 1]: "
            "write bytes, which have one range only"
        )
    raise EvatokError(
        f"{path}: {key} is {str(array.dtype).removeprefix('torch.')} {shape}; videos are uint8 "
        "(F, H, W, 3), (N, F, H, W, 3) or (N, 3, F, H, W), or floats (N, 3, F, H, W) in [-1, 1]"
    )
