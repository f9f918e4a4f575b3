"""Numbers as bits and bytes: fixed-width bit fields, and integers of variable length.

docs/format.md describes both for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from evatok.core.errors import EvatokError

MAX_VARINT = 10  # bytes of a 64-bit number


def bit_width(count: int) -> int:
    """⌈log₂ count⌉: bits that tell `count` values apart."""
    return (count - 1).bit_length()


def pack_fields(values: np.ndarray, width: int) -> np.ndarray:
    """Bits (len(values) · width,) uint8 of unsigned numbers, each with its highest bit first."""
    shifts = np.arange(width - 1, -1, -1)
    return ((values.astype(np.int64)[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)


def unpack_fields(bits: np.ndarray, count: int, width: int) -> np.ndarray:
    """The inverse of `pack_fields`: (count,) int64.

    Raises:
        EvatokError: fewer bits than that.
    """
    if len(bits) < count * width:
        raise EvatokError(f"{len(bits)} bits are fewer than {count} fields of {width}")
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    return bits[: count * width].reshape(count, width).astype(np.int64) @ weights


def write_varints(values: Iterable[int]) -> bytes:
    """Integers of either sign as LEB128 of their zigzag code: 7 bits a byte, lowest first."""
    out = bytearray()
    for value in values:
        code = value << 1 if value >= 0 else (-value << 1) - 1
        while code > 127:
            out.append(code & 127 | 128)
            code >>= 7
        out.append(code)
    return bytes(out)


def read_varints(data: bytes, start: int, count: int) -> tuple[list[int], int]:
    """The inverse of `write_varints`.

    Returns:
        `count` integers, and the position after them.

    Raises:
        EvatokError: the bytes end first, or a number has more than 64 bits.
    """
    values: list[int] = []
    for _ in range(count):
        code = shift = 0
        while True:
            if start >= len(data) or shift >= 7 * MAX_VARINT:
                raise EvatokError("a number of variable length has no end")
            byte = data[start]
            start += 1
            code |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        values.append(code >> 1 if code % 2 == 0 else -(code >> 1) - 1)
    return values, start
