"""Exceptions that are the caller's doing become one line and exit status 2."""

from __future__ import annotations

import errno

import pydantic

from evatok.core.errors import EvatokError
from evatok.core.paths import printable

REPORT = "evatok: this is a fault of evatok: please report it with these lines and the command"

REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere; what was finished is kept",
    errno.EDQUOT: "free some space or write elsewhere; what was finished is kept",
    errno.EFBIG: "raise the limit on file sizes or write elsewhere; what was finished is kept",
    errno.EACCES: "allow it (chmod) or name another place",
    errno.EPERM: "allow it (chmod) or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EIO: "the disk or its connection fails: check it; what was finished is kept",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def message_for_user(error: BaseException) -> str | None:
    """One line for an error that the caller can mend, None for any other.

    They are an `EvatokError`, settings of a wrong kind, a file or disk that cannot be used, and no
    memory. Any other exception is a mistake of ours: it keeps its traceback.
    """
    inner = getattr(error, "inner_exception", None)  # of torch's compiler
    if isinstance(inner, OSError):
        error = inner  # no room for its files
    elif type(inner).__name__ == "CppCompileError":
        lines = [line for line in str(inner).splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line), lines[-1])
        return _one_line(
            f"the C++ compiler failed: {said.strip()} (look at the compiler and the room in "
            "TMPDIR, or set train.compile=false)"
        )
    if isinstance(error, pydantic.ValidationError):
        parts = (
            f"{'.'.join(map(str, item['loc'])) or error.title}: {item['msg']}"
            for item in error.errors()
        )
        return _one_line("; ".join(parts))
    if isinstance(error, EvatokError):
        return _one_line(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in REMEDIES):
        return _of_system(error)
    if isinstance(error, FileNotFoundError) and "temporary directory" in (error.strerror or ""):
        # of `tempfile`, in the import of a library for one
        return _one_line(f"{error.strerror} (free some space, or let TMPDIR name another folder)")
    if isinstance(error, MemoryError) or _of_memory(error):
        return (
            f"out of memory ({_one_line(error) or 'an array'}): take smaller batches, fewer frames "
            "or smaller pictures, or end other programs"
        )
    return None


def _of_memory(error: BaseException) -> bool:
    """Whether torch had no memory: told by a class on accelerators, by words on a CPU."""
    named = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" in named or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _of_system(error: OSError) -> str:
    name = "" if error.filename is None else f"{printable(error.filename)}: "
    remedy = REMEDIES.get(error.errno or 0)
    return _one_line(f"{name}{error.strerror}{f' ({remedy})' if remedy else ''}")


def _one_line(error: object) -> str:
    return " ".join(printable(error).split())
