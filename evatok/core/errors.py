"""The errors that the user can mend: commands show them as one line and exit with status 2.

They live in the lowest package so that every other one can raise them. Any other exception is a
mistake of ours, or one of the system that `evatok/cli/errors.py` names.
"""

from __future__ import annotations


class EvatokError(ValueError):
    """Bad input, named in the message together with the remedy."""


class MissingFileError(EvatokError, FileNotFoundError):
    """A file or folder that is not there, and what makes it."""


class MissingPackageError(EvatokError, ImportError):
    """An optional package that is not installed, and how to install it."""
