"""Token shards by several processes: batches as parts on disk, put together by the last to finish.

Process r of n encodes batches r, r + n, r + 2 n …, each into a file of its own. Whoever finds all
parts there joins them in order: the tokens are the same bytes for any number of processes. A killed
process loses the batch it was at, no more.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evatok.core.errors import EvatokError
from evatok.core.files import atomic_file, write_text
from evatok.core.loading.arrays import ArrayError, iter_npz
from evatok.core.loading.records import read_object
from evatok.core.processes.distributed import RankInfo
from generator.data.shards import Batch, Encoded, Writer
from generator.data.token_set import META, TokenSet

log = logging.getLogger(__name__)


def write_share(
    writer: Writer,
    batch: Callable[[int], Batch],
    num_batches: int,
    batch_size: int,
    process: RankInfo | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenSet | None:
    """Encode this process's batches that are not there yet; join the parts if none is missing.

    Args:
        writer: of the set.
        batch: number → batch; asked only for those of this share.
        num_batches: of the whole set.
        batch_size: of every batch but the last.
        process: which one this is; the only one by default.
        progress: told the batches of this share that are there, and all of the share.

    Returns:
        The tokens, or None if other processes are still at work on them.

    Raises:
        EvatokError: the folder, or that of the parts, holds something else, or there is no batch.
    """
    parts = writer.directory.with_name(writer.directory.name + ".parts")
    done = writer.finished()
    if done is not None:
        shutil.rmtree(parts, ignore_errors=True)
        return done
    if num_batches < 1:
        raise EvatokError(f"no clip to write into {writer.directory}")
    _claim(parts, writer.meta | {"batches": num_batches, "batch_size": batch_size})
    mine = (process or RankInfo()).shard(num_batches)
    for count, number in enumerate(mine, 1):
        if not _is_whole(_part(parts, number)):
            _save(_part(parts, number), writer.encode(batch(number), number * batch_size))
        if progress is not None:
            progress(count, len(mine))
    with _held(writer.directory.parent):
        # Finished first: with the set complete its parts are taken away.
        done = writer.finished()
        if done is None and all(_part(parts, i).is_file() for i in range(num_batches)):
            done = writer.write(_load(_part(parts, i), writer.kinds) for i in range(num_batches))
        if done is not None:
            shutil.rmtree(parts, ignore_errors=True)
        return done


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _is_whole(path: Path) -> bool:
    """Whether a part is there as it was written: its arrays carry checksums."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        log.warning("%s is damaged and is made again: %s", path, damaged)
    return damaged is None


def _claim(parts: Path, plan: dict[str, Any]) -> None:
    """Make the folder of parts, or make sure that those there are of this plan."""
    path = parts / META
    if not path.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(plan, indent=1))
    if read_object(path, f"delete {parts}; the batches in it are encoded again") != plan:
        raise EvatokError(
            f"{parts} holds parts of other settings; delete it or name another folder"
        )


def _save(path: Path, encoded: Encoded) -> None:
    arrays: dict[str, Any] = {"labels": encoded.labels, "videos": encoded.videos}
    for kind, rows in encoded.sequences.items():
        arrays[kind] = np.concatenate(rows)
        arrays[f"{kind}_lengths"] = np.array([len(row) for row in rows], np.int64)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, kinds: tuple[str, ...]) -> Encoded:
    try:
        arrays = dict(iter_npz(path))
        sequences = {
            kind: np.split(arrays[kind], np.cumsum(arrays[f"{kind}_lengths"])[:-1])
            for kind in kinds
        }
        return Encoded(sequences, arrays["labels"], arrays["videos"])
    except (ArrayError, KeyError) as error:
        path.unlink(missing_ok=True)  # the next run of the command encodes that batch again
        reason = str(error)
    raise EvatokError(f"a damaged part was removed ({reason}): run the same command again")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Let one process at a time join; the lock ends with the process, however that ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
