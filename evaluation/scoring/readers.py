"""Videos of anyone's making under one roof: files, folders of frames, arrays.

| given | gives |
| --- | --- |
| a folder | its video files (see `video.folder`); each subfolder of pictures alone as one video |
| a list, `.txt` or `.csv` | its videos, by paths from its folder on: `trainlist01.txt` of UCF-101 |
| a video file | that video |
| `.npz` | each of its arrays: uint8 (F, H, W, 3), or (N, F, H, W, 3) for N videos |
| `.npy` | its array, likewise |
| `.pt` | a tensor likewise, or (N, 3, F, H, W) of either kind |

Floats are taken as (N, 3, F, H, W) in [−1, 1] only. Nothing is unpickled but plain tensors.

Shape letters: N videos, F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from evaluation.fetch import file_sha256
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.arrays import iter_npz, read_npy, read_torch
from video.clips import Resizing, Size, fitted, to_clip, to_frames
from video.decoding.container import VideoError
from video.decoding.stills import PICTURES, read_picture
from video.folder import SUFFIXES, files_under, is_video
from video.lists import listed_files
from video.reading import iter_frames, read_frames
from video.seek import known_frames

ARRAYS = (".npy", ".npz", ".pt")
LISTS = (".txt", ".csv")
KEPT = 2**30  # bytes of arrays that stay in memory while their videos are gone through
Stamp = tuple[int, int]  # size and time of change (ns) of a file


@dataclass(frozen=True)
class Video:
    """One video, not yet read.

    Attributes:
        name: unique within its input.
        read: (number of frames or None for all, size, resizing) → (F, height, width, 3) uint8, or
            float32 in [0, 1], as `video.clips.fitted`; raises `VideoError` or `OSError`.
        count: number of frames; decoded only where they are not told, and then at most so many as
            are asked for; raises as `read`.
        digest: sha256 in hex of its content, for caches.
    """

    name: str
    read: Callable[[int | None, Size, Resizing], Tensor]
    count: Callable[[int | None], int]
    digest: Callable[[], str]


def find_videos(path: str | Path) -> list[Video]:
    """All videos of an input, sorted by name; see the head of this file.

    Raises:
        FileNotFoundError: no such path.
        EvatokError: there is no video in it, an array of another shape or range, or a list that
            names what is not there.
    """
    path, arrays = Path(path), _Arrays()
    if not path.exists():
        raise MissingFileError(f"no file or folder {path}")
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in ARRAYS:
            return list(_of_arrays(path, path.stem, arrays))
        if is_video(path):
            return [_of_file(path, path.name)]
        if suffix in LISTS:
            return list(_of_list(path))
        known = ", ".join(sorted((*SUFFIXES, *ARRAYS, *LISTS)))
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
            found += _of_arrays(file, name, arrays)
        elif suffix in PICTURES:
            pictures.setdefault(file.parent, []).append(file)
    for folder, files in pictures.items():
        if folder in beside:  # a poster, not frames
            continue
        files.sort(key=_natural)
        is_whole = folder == path  # the input itself is one video's frames
        name = path.resolve().name if is_whole else folder.relative_to(path).as_posix()
        found.append(_of_pictures(files, name))
    if not found:
        known = ", ".join(sorted((*SUFFIXES, *ARRAYS)))
        raise EvatokError(f"no videos under {path} ({known}, or folders of pictures)")
    return sorted(found, key=lambda video: video.name)


def _natural(path: Path) -> list[str | int]:
    """Frame 2 before frame 10, zeros in front or not."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _of_list(path: Path) -> Iterator[Video]:
    names = sorted(set(listed_files(path)))
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise EvatokError(
            f"{path} names {missing[0]}, which is not in {path.parent} ({len(missing)} of "
            f"{len(names)} are not): put the list where its paths begin"
        )
    return (_of_file(path.parent / name, name) for name in names)


def _of_file(path: Path, name: str) -> Video:
    def read(count: int | None, size: Size, resizing: Resizing) -> Tensor:
        return read_frames(path, 0, count, size, resizing=resizing)

    def count(most: int | None) -> int:
        known = known_frames(path)
        return sum(1 for _ in islice(iter_frames(path), most)) if known is None else known

    return Video(name, read, count, partial(file_sha256, path))


def _of_pictures(files: list[Path], name: str) -> Video:
    def read(count: int | None, size: Size, resizing: Resizing) -> Tensor:
        pictures = (torch.from_numpy(np.ascontiguousarray(read_picture(f))) for f in files[:count])
        return torch.cat([fitted(picture[None], size, resizing) for picture in pictures])

    def digest() -> str:
        whole = hashlib.sha256()
        for file in files:
            whole.update(file_sha256(file).encode())
        return whole.hexdigest()

    return Video(name, read, lambda most: len(files), digest)


class _Arrays:
    """Arrays of files, read when they are asked for; the last ones stay, up to `KEPT` bytes.

    What is read at once is kept at once: one array of a .npz, all tensors of a .pt.
    """

    def __init__(self) -> None:
        self._lock = Lock()  # videos are read by several threads
        self._kept: dict[tuple[Path, str | None], dict[str, Tensor]] = {}  # oldest first

    def keep(self, path: Path, arrays: dict[str, Tensor]) -> None:
        """Hold what was just read."""
        with self._lock:
            self._put(_unit(path, next(iter(arrays))), arrays)

    def one(self, path: Path, key: str, number: int, stamp: Stamp) -> Tensor:
        """One video of an array, a copy; see `_frames`.

        Raises:
            OSError: the file is gone.
            VideoError: it is another than it was when it was found, by size or time of change.
        """
        unit = _unit(path, key)
        with self._lock:
            arrays = self._kept.pop(unit, None)
            if arrays is None:
                if _stamp(path) != stamp:
                    raise VideoError(f"{path} has changed since its videos were looked for")
                arrays = {name: _frames(x, path, name) for name, x in _load(path, unit[1])}
            self._put(unit, arrays)
        return arrays[key][number].clone()  # a view would hold the whole array

    def _put(self, unit: tuple[Path, str | None], arrays: dict[str, Tensor]) -> None:
        self._kept[unit] = arrays
        sizes = [sum(x.nbytes for x in kept.values()) for kept in self._kept.values()]
        while len(sizes) > 1 and sum(sizes) > KEPT:
            del self._kept[next(iter(self._kept))], sizes[0]


def _unit(path: Path, key: str) -> tuple[Path, str | None]:
    """What is read together with an array."""
    return path, key if path.suffix.lower() == ".npz" else None


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _of_arrays(path: Path, name: str, arrays: _Arrays) -> Iterator[Video]:
    stamp, found = _stamp(path), dict[str, Tensor]()
    is_apart = path.suffix.lower() == ".npz"
    is_empty = True
    for key, array in _load(path):
        frames = _frames(array, path, key)
        is_empty = False
        found = {key: frames} if is_apart else found | {key: frames}
        arrays.keep(path, found)
        for number, one in enumerate(frames):
            get = partial(arrays.one, path, key, number, stamp)
            count = one.shape[1 if one.is_floating_point() else 0]
            yield Video(
                f"{name}/{key}/{number:06d}",
                partial(_read_array, get),
                partial(_told, count),
                cache(partial(_digest_of, get)),
            )
    if is_empty:
        raise EvatokError(f"{path} holds no arrays")


def _read_array(
    get: Callable[[], Tensor], count: int | None, size: Size, resizing: Resizing
) -> Tensor:
    frames = get()
    if resizing == "float" and frames.is_floating_point():  # (3, F, H, W) in [−1, 1]
        given = ((frames.permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)
    else:
        given = _as_bytes(frames)
    return fitted(given[:count], size, resizing)


def _told(count: int, most: int | None) -> int:
    return count


def _digest_of(get: Callable[[], Tensor]) -> str:
    """Of the pixels and their shape; floats that are bytes are the same as these."""
    frames = get()
    pixels = _as_bytes(frames).contiguous()
    whole = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes())
    if frames.is_floating_point() and not torch.allclose(
        to_clip(pixels), frames, rtol=0, atol=1e-6
    ):
        whole.update(frames.contiguous().numpy().tobytes())
    return whole.hexdigest()


def _as_bytes(frames: Tensor) -> Tensor:
    """(F, H, W, 3) uint8 of that, or of (3, F, H, W) float in [−1, 1]."""
    return frames if frames.dtype == torch.uint8 else to_frames(frames)


def _load(path: Path, only: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Arrays of a file, by name; of a .npz perhaps one of them."""
    suffix = path.suffix.lower()
    if suffix != ".pt":
        is_npz = suffix == ".npz"
        for key, array in iter_npz(path, only) if is_npz else [("clips", read_npy(path))]:
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
