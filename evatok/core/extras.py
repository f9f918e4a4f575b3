"""Packages that only some commands need: the one place that names the extra of each.

The core (encode, decode, sample, predict) runs without them. A module that needs one imports it
inside `with extra(NAME):`, so that a missing package is one line with its remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evatok.core.errors import MissingPackageError

EXTRAS = {
    "train": ("accelerate", "pyarrow", "tensorboard"),
    "evaluation": ("jinja2", "matplotlib", "torchmetrics"),
    "text": ("sentencepiece",),
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of an extra in this block.

    Args:
        name: of the extra, a key of `EXTRAS`.

    Raises:
        MissingPackageError: one of its packages is missing. The import of any other module fails as
            usual.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS[name]:
            raise
        raise MissingPackageError(
            f'{package} is not installed: pip install "evatok[{name}]"'
        ) from error
