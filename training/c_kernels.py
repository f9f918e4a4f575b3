"""C code of ours, compiled by the system's compiler when it is first used.

A library is kept in the folder of caches, named after source, options, compiler and processor, and
after the sha256 of its own content: a file that was cut or changed is compiled again, since the
loader would end the process without a word.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from evatok.core.files import cache_dir

log = logging.getLogger(__name__)

OPTIONS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


class NoCompiler(RuntimeError):
    """The kernels cannot be compiled here; the text says why, in a line."""


def loaded(source: Path, options: Sequence[str] = OPTIONS) -> ctypes.CDLL:
    """The library that a C file compiles to; from the folder of caches if it is there.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    named = os.environ.get("CC")
    compiler = shutil.which(named) if named else shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler(f"no C compiler {named or 'cc'} to be found")
    key = hashlib.sha256()
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    for part in (*texts, *options, _version(compiler), _processor()):
        key.update(part.encode() + b"\n")
    folder, name = cache_dir() / "kernels", key.hexdigest()[:16]
    try:
        path = _cached(folder, name) or _compile(compiler, source, options, folder, name)
    except OSError as error:
        raise NoCompiler(f"{folder} cannot be written: {error}; EVATOK_CACHE moves it") from error
    try:
        # torch has loaded its OpenMP by now, and both share its threads
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f"{path} does not load: {error}") from error


def _cached(folder: Path, name: str) -> Path | None:
    """The library that was compiled under this name, if its content is still what it was."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        if path == _place(folder, name, path.read_bytes()):
            return path
        log.warning("%s is damaged: compiled again", path)
        path.unlink(missing_ok=True)
    return None


def _place(folder: Path, name: str, content: bytes) -> Path:
    return folder / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _compile(compiler: str, source: Path, options: Sequence[str], folder: Path, name: str) -> Path:
    """Make the library, whole or not at all, and return its path.

    Two processes at once write the same content to the same name, or different content to two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        partial = Path(scratch) / f"{name}.so"
        words = [compiler, *options, str(source), "-o", str(partial)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise NoCompiler(f"{compiler} does not compile {source.name}: {lines[0]}")
        with partial.open("rb") as file:
            path = _place(folder, name, file.read())
            os.fsync(file.fileno())
        os.replace(partial, path)
    return path


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _processor() -> str:
    """Identity of the processor, as `-march=native` sees it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    wanted = ("model", "flags", "Features", "cpu family", "CPU part")
    return "\n".join([platform.machine(), platform.processor(), *_first(lines, wanted)])


def _first(lines: list[str], names: Sequence[str]) -> list[str]:
    found = {}
    for line in lines:
        found.setdefault(line.split(":")[0].strip(), line)
    return [found[name] for name in names if name in found]
