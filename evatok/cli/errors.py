"""Which exceptions are the caller's doing: they become one line and exit status 2."""

from __future__ import annotations

import dis
import errno
from types import TracebackType

import pydantic

from evatok.core.errors import EvatokError
from evatok.core.paths import printable

PACKAGES = ("video", "training", "evaluation", "tokenizer", "generator", "evatok")
RAISE = dis.opmap["RAISE_VARARGS"]

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

    Bad input is an `EvatokError`, a file or disk that cannot be used, or another exception that one
    of our own packages raised on purpose, with a `raise`. A ValueError from inside a library, or
    from an operation such as an unequal `zip`, is a mistake of ours: it keeps its traceback.
    """
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
    if isinstance(error, (ValueError, OSError, ImportError)) and _raised_on_purpose(error):
        return _one_line(error)
    if isinstance(error, EOFError):  # of a library that met an empty file
        return f"a file is empty or cut off ({_one_line(error) or 'end of file'}): make it again"
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


def _raised_on_purpose(error: BaseException) -> bool:
    """Whether a `raise` of one of our packages raised it; needs no source files to tell."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    frame = last.tb_frame
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in PACKAGES and frame.f_code.co_code[last.tb_lasti] == RAISE
