"""Features on disk, so that a second run costs seconds and a killed one goes on.

A vector is filed under its network (name and checksum of the weights) and its clip: the content of
the file, the window, and how it was cut and resized. Paths don't matter: a moved file is known
again, a changed one is not. A checksum goes with each value: a damaged one is computed again. One
SQLite file; any number of processes may use it at once.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evatok.core.errors import EvatokError
from evatok.core.files import cache_dir
from evatok.core.processes.locks import held

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

SUM = 4  # bytes of the checksum behind a vector; those of older versions have none
TABLES = """
CREATE TABLE IF NOT EXISTS features (
    network TEXT, clip TEXT, vector BLOB, PRIMARY KEY (network, clip)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked_notes (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """Default path of the cache: beside fetched weights."""
    return cache_dir() / "features.sqlite"


class FeatureCache:
    """Vectors by network and clip, and JSON-able notes by name; closed at the end of a `with`."""

    def __init__(self, path: Path | str) -> None:
        """Open a cache; made if absent.

        Raises:
            EvatokError: the file is no cache.
        """
        self.path, self._is_told = Path(path), False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite waits for no other process where a file becomes one with a write-ahead log
        lock = self.path.with_name(f"{self.path.name}.lock")
        with held(lock), self._sound(), ExitStack() as stack:
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            stack.callback(self._file.close)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.executescript(TABLES)
            stack.pop_all()

    def __enter__(self) -> Self:
        """Return itself, open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise EvatokError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise EvatokError(f"{self.path} is damaged ({error}): remove it") from None

    def get(self, network: FeatureNetwork, clip: str) -> Tensor | None:
        """(D,) float32, or None if it is not known."""
        with self._sound():
            row = self._file.execute(
                "SELECT vector FROM features WHERE network = ? AND clip = ?", (_of(network), clip)
            ).fetchone()
        return None if row is None else self._vector(row[0], network, clip)

    def _vector(self, blob: Any, network: FeatureNetwork, clip: str) -> Tensor | None:
        """The vector of a row; None, told once, if it is not what was filed."""
        if isinstance(blob, bytes) and len(blob) in (4 * network.dim, 4 * network.dim + SUM):
            content, checksum = blob[: 4 * network.dim], blob[4 * network.dim :]
            vector = np.frombuffer(content, "<f4")
            fits = not checksum or checksum == _checksum(f"{_of(network)} {clip}", content)
            if fits and np.isfinite(vector).all():
                return torch.from_numpy(vector.copy())
        self._tell()
        return None

    def _tell(self) -> None:
        if not self._is_told:
            log.warning("%s holds damaged values: they are computed again", self.path)
        self._is_told = True

    def put(self, network: FeatureNetwork, vectors: Mapping[str, Tensor]) -> None:
        """File vectors (D,) by clip, all or none."""
        rows = []
        for clip, vector in vectors.items():
            content = vector.numpy().astype("<f4").tobytes()
            checksum = _checksum(f"{_of(network)} {clip}", content)
            rows.append((_of(network), clip, content + checksum))
        with self._sound():
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            self._file.execute("COMMIT")

    def note(self, name: str) -> Any:
        """Value noted under a name, or None."""
        with self._sound():
            row = self._file.execute(
                "SELECT value FROM checked_notes WHERE name = ?", (name,)
            ).fetchone()
        if row is None:
            return None
        checksum, _, content = str(row[0]).partition(" ")
        if checksum == _checksum(name, content.encode()).hex():
            return json.loads(content)
        self._tell()
        return None

    def put_note(self, name: str, value: Any) -> None:
        """Note something JSON-able."""
        with self._sound():
            content = json.dumps(value)
            checked = f"{_checksum(name, content.encode()).hex()} {content}"
            self._file.execute(
                "INSERT OR REPLACE INTO checked_notes VALUES (?, ?)", (name, checked)
            )


def _checksum(key: str, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(key.encode())).to_bytes(SUM, "little")


def _of(network: FeatureNetwork) -> str:
    return f"{network.name} {network.checksum}"
