"""Small sets of tokens for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from generator.data.shards import Batch, Writer
from generator.data.token_set import TokenSet


def write_tokens(directory: Path, batches: Iterable[Batch], *what: Any, **more: Any) -> TokenSet:
    """Tokenize clips into shards with a `Writer` of these arguments, unless they are there."""
    writer = Writer(directory, *what, **more)
    done, first = writer.finished(), 0
    if done is not None:
        return done
    encoded = []
    for batch in batches:
        encoded.append(writer.encode(batch, first))
        first += len(batch[0])
    return writer.write(encoded)
