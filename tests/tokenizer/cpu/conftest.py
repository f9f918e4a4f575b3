"""Both forms of the C code: with the processor's tiles, if it has them, and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenizer.cpu import attention, linear, tiles


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=["as it is", "without tiles"])
def tiles_or_not(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Iterator[None]:
    if request.param == "as it is":
        yield
        return
    monkeypatch.setenv("EVATOK_CACHE", str(cache))
    monkeypatch.setattr(tiles, "OPTIONS", (*tiles.OPTIONS, "-DNO_TILES"))
    forget()
    yield
    forget()


def forget() -> None:
    attention.library.cache_clear()
    linear.library.cache_clear()
