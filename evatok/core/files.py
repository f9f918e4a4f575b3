"""Files and folders that are there whole or not at all, and the folder of caches.

Everything is written under a temporary name beside its place, forced to disk, and renamed:

    .HASH.HOST.PID.NUMBER.partial.mp4     HASH of the final name, so that long names fit too

The name says who writes. A partial file of a process that has ended on this machine is swept by the
next process that writes into the same folder; one of a living process, or of another machine on a
shared disk, is left alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from safetensors import SafetensorError

from evatok.core.errors import EvatokError

PARTIAL = re.compile(r"\.[0-9a-f]{12}\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.\d+\.partial(\.\w+)?")

_numbers = count()
_open: set[str] = set()  # partial names that this process is writing
_swept: set[tuple[int, Path]] = set()  # (process, folder): a forked child looks again


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; move it to `path` when the block ends without an error.

    The temporary name has the suffix of `path`. The file gets the mode that the umask gives, even
    where a library writes private files. Folders are made.

    Raises:
        OSError: it cannot be written; `filename` is `path`, which is as it was.
    """
    with naming(path):
        partial = _begin(path)
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode & 0o777
        try:
            yield partial
            partial.chmod(mode)
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            _open.discard(partial.name)


@contextmanager
def atomic_folder(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; move it to `path` when the block ends without an error.

    Args:
        path: absent, or an empty folder.
        keep: if another process has made `path` meanwhile, take its folder for ours: for contents
            that the name decides.

    Raises:
        EvatokError: another process has made `path` meanwhile; its folder is left as it is.
        OSError: it cannot be written; `filename` is `path`.
    """
    with partial_folder(path) as partial:
        mode = partial.stat().st_mode & 0o666
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                file = Path(folder, name)
                file.chmod(mode)
                sync(file)
            sync(Path(folder))
        _move_folder(partial, path, keep)
        sync(path.parent)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which is removed in the end, whatever happens.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    with naming(path):
        partial = _begin(path)
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _open.discard(partial.name)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8, whole or not at all; folders are made.

    Returns:
        The path.

    Raises:
        EvatokError: the text holds what UTF-8 cannot, such as a file name of another encoding.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = text[max(0, error.start - 40) : error.end + 40]
        raise EvatokError(
            f"{path}: {place!r} is not UTF-8 and cannot be written: rename the file"
        ) from None
    with atomic_file(path) as partial:
        partial.write_bytes(data)
    return path


def check_writable(path: Path) -> None:
    """Make sure, before long work, that a file can be written; its folder is made.

    Raises:
        EvatokError: it is a folder.
        OSError: it cannot; `filename` is `path`.
    """
    if path.is_dir():
        raise EvatokError(f"{path} is a folder: name a file")
    with naming(path):
        partial = _begin(path)
        try:
            partial.touch(exist_ok=False)
        finally:
            partial.unlink(missing_ok=True)
            _open.discard(partial.name)


def sweep(folder: Path) -> None:
    """Remove the partial files and folders in `folder` whose writers have ended on this machine."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        found = PARTIAL.fullmatch(entry.name)
        if found is None or found["host"] != _host() or entry.name in _open:
            continue
        if int(found["pid"]) != os.getpid() and is_alive(int(found["pid"])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; True where the system does not tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    if os.name != "posix" and path.is_dir():
        return  # folders cannot be opened there
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing name `path`, whatever the library says that met it.

    Libraries leave the name out, name the temporary file, or raise errors of their own.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    except OSError as error:
        if error.errno is None and not re.search(r"\d+ (requested|bytes).*written", str(error)):
            raise
        name = error.filename
        if isinstance(name, str | bytes) and not PARTIAL.fullmatch(_top(os.fsdecode(name), path)):
            raise
        code = error.errno
        text = "it cannot be written to its end" if code is None else os.strerror(code)
        raise OSError(code or errno.ENOSPC, text, str(path)) from error


def cache_dir() -> Path:
    """Folder of weights, features and compiled code: `EVATOK_CACHE`, or ~/.cache/evatok."""
    chosen = os.environ.get("EVATOK_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "evatok"


def _begin(path: Path) -> Path:
    """Make the folder of `path`, sweep it once a process, and return a temporary name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file where a folder should be
        text = "is a file where a folder is needed"
        raise NotADirectoryError(errno.ENOTDIR, text, error.filename) from None
    key = (os.getpid(), path.parent)
    if key not in _swept:
        _swept.add(key)
        sweep(path.parent)
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    suffix = path.suffix if re.fullmatch(r"\.\w{1,12}", path.suffix, re.ASCII) else ""
    name = f".{digest}.{_host()}.{os.getpid()}.{next(_numbers)}.partial{suffix}"
    partial = path.with_name(name)
    _open.add(name)
    return partial


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _move_folder(partial: Path, path: Path, keep: bool) -> None:
    try:
        os.rename(partial, path)
    except OSError:
        if not path.exists():
            raise
        if not keep:
            raise EvatokError(
                f"{path} was made by another process meanwhile; it is left as it is"
            ) from None


def _top(name: str, path: Path) -> str:
    """The entry beside `path` that a file name lies in."""
    try:
        return Path(name).relative_to(path.parent).parts[0]
    except (ValueError, IndexError):
        return ""
