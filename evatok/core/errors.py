"""The error that the user can mend: commands show its message as one line and exit with status 2.

It lives in the lowest package so that every other one can raise it.
"""

from __future__ import annotations


class EvatokError(ValueError):
    """Bad input, named in the message together with the remedy."""
