"""Damage to a file, chosen by a seeded random number generator and by what the file is.

Every file may be damaged as bytes; text also as text; JSON, YAML and the headers of safetensors
also as a tree of values; arrays, tables and SQLite also as values of another shape, type or range.
"""

from __future__ import annotations

import io
import json
import random
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

EXTREMES = (0, -1, 1, 3, 1e9, 10**9, 2**31, 2**63, -(2**63) - 1, 10**30, 1e308, 0.5, -0.0)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TYPES = (
    None,
    True,
    False,
    "",
    "x",
    "\0",
    "../../x",
    "1e-4",
    [],
    {},
    [[]],
    {"a": 1},
    [0],
    -1,
    0,
    2.5,
)
WORDS = ("nan", "inf", "-1", "0", "1e9", "9" * 25, "null", "~", "", "-", "{", "]", "'", '"', "\t",
         "\0", "\N{PILE OF POO}", "../../x", "x" * 5000, "*a", "&a",
         "!!python/name:os.system")  # fmt: skip

Random = random.Random
Damage = Callable[[bytes, Random], bytes]


def truncate(data: bytes, draw: Random) -> bytes:
    """Keep the beginning, sometimes nothing."""
    return data[: draw.choice((0, draw.randrange(len(data) + 1), max(0, len(data) - 1)))]


def flip_bits(data: bytes, draw: Random) -> bytes:
    """Flip one to sixteen bits, mostly near the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16)) if out else 0):
        end = draw.choice((len(out), min(len(out), 256)))
        out[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(out)


def overwrite(data: bytes, draw: Random) -> bytes:
    """Replace a run by zeros, ones or noise."""
    start, end = _span(data, draw)
    fill = draw.choice((bytes(end - start), b"\xff" * (end - start), draw.randbytes(end - start)))
    return data[:start] + fill + data[end:]


def cut_out(data: bytes, draw: Random) -> bytes:
    """Remove a run."""
    start, end = _span(data, draw)
    return data[:start] + data[end:]


def repeat(data: bytes, draw: Random) -> bytes:
    """Write a run twice."""
    start, end = _span(data, draw)
    return data[:end] + data[start:]


def exchange(data: bytes, draw: Random) -> bytes:
    """Swap two runs."""
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def append(data: bytes, draw: Random) -> bytes:
    """Add noise or the file itself at the end."""
    return data + draw.choice((b"\0", b"\n", draw.randbytes(100), data))


def swap_tokens(data: bytes, draw: Random) -> bytes:
    """Exchange two words, or put an odd one in the place of one."""
    parts = re.split(rb"(\w+)", data)
    words = range(1, len(parts), 2)
    if not words:
        return append(data, draw)
    first = draw.choice(words)
    second = draw.choice(words)
    if draw.random() < 0.5:
        parts[first], parts[second] = parts[second], parts[first]
    else:
        parts[first] = draw.choice(WORDS).encode()
    return b"".join(parts)


def change_number(data: bytes, draw: Random) -> bytes:
    """Put an extreme number in the place of one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data))
    if not found:
        return swap_tokens(data, draw)
    place = draw.choice(found)
    number = str(draw.choice(EXTREMES + NOT_FINITE)).encode()
    return data[: place.start()] + number + data[place.end() :]


def change_lines(data: bytes, draw: Random) -> bytes:
    """Remove, repeat, move or empty a line; another encoding or end of line."""
    kind = draw.randrange(8)
    if kind < 3:
        changed = data.decode("utf-8", "replace").encode(("utf-8-sig", "utf-16", "latin-1")[kind],
                                                         "replace")  # fmt: skip
        return changed
    if kind == 3:
        return data.replace(b"\n", b"\r\n")
    lines = data.splitlines(keepends=True) or [b""]
    place = draw.randrange(len(lines))
    if kind == 4:
        del lines[place]
    elif kind == 5:
        lines.insert(draw.randrange(len(lines)), lines[place])
    elif kind == 6:
        lines[place] = b"\n"
    else:
        lines[place] = lines[place].replace(b",", draw.choice((b",,", b";", b"\t", b"")))
    return b"".join(lines)


def change_value(data: bytes, draw: Random) -> bytes:
    """Change, remove or nest one value of a JSON file, of any depth."""
    try:
        tree = json.loads(data)
    except ValueError:
        return change_number(data, draw)
    return json.dumps(_change_tree(tree, draw)).encode()


def change_line_value(data: bytes, draw: Random) -> bytes:
    """As `change_value`, in one line of a JSONL file."""
    lines = data.splitlines() or [b"{}"]
    place = draw.randrange(len(lines))
    lines[place] = change_value(lines[place], draw)
    return b"\n".join(lines) + b"\n"


def change_setting(data: bytes, draw: Random) -> bytes:
    """As `change_value`, in YAML; or a bomb of aliases, or brackets without end."""
    kind = draw.randrange(12)
    if kind == 0:
        bomb = "\n".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12))
        key = draw.choice(re.findall(rb"^\w+", data, re.M) or [b"model"]).decode()
        return f"b0: &b0 [x]\n{bomb}\n{key}: *b11\n".encode() + data
    if kind == 1:
        depth = draw.choice((100, 5000))
        return data + b"\nmodel: " + b"[" * depth + b"]" * depth
    try:
        return yaml.safe_dump(_change_tree(yaml.safe_load(data), draw)).encode()
    except yaml.YAMLError:
        return change_number(data, draw)


def change_tensors(data: bytes, draw: Random) -> bytes:
    """The header of a safetensors file, or numbers of its tensors."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    kind, name = draw.randrange(6), draw.choice(names)
    start, end = header[name]["data_offsets"]
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[name + draw.choice(("x", ".weight"))] = header.pop(name)
    elif kind == 2:
        shape = header[name]["shape"]
        header[name]["shape"] = draw.choice((shape[::-1], [*shape, 1], [-1], [2**62, 4], []))
    elif kind == 3:
        header = _change_tree(header, draw)
    else:  # of float16 and float32 both: all bits but the sign, as NaN, or only zeros
        body[start:end] = draw.choice((b"\xff", b"\0", b"\x7c")) * (end - start)
    head = json.dumps(header).encode()
    return struct.pack("<Q", draw.choice((len(head),) * 20 + (2**63, 0))) + head + bytes(body)


def change_token_file(data: bytes, draw: Random) -> bytes:
    """The header or a chunk of a token file, with a checksum that is right again."""
    (size,) = struct.unpack("<I", data[4:8])
    head, chunks, place = data[8 : 8 + size], [], 12 + size
    while data[place : place + 2] == b"EV":
        length = int.from_bytes(data[place + 3 : place + 6], "little")
        chunks.append((data[place : place + 10], data[place + 14 : place + 14 + length]))
        place += 14 + length
    tail, kind = data[place:], draw.randrange(6)
    chosen = draw.randrange(len(chunks))
    first, payload = chunks[chosen]
    if kind < 2:
        head = change_value(head, draw)
    elif kind == 2:
        del chunks[chosen]
    elif kind == 3:
        chunks[chosen] = (first[:6] + struct.pack("<I", draw.choice((0, 1, 2**32 - 1))), payload)
    else:
        payload = draw.choice(BYTES)(payload, draw)[: 2**24 - 1]
        chunks[chosen] = (first[:3] + len(payload).to_bytes(3, "little") + first[6:], payload)
    out = b"EVT1" + struct.pack("<I", len(head)) + head + struct.pack("<I", zlib.crc32(head))
    for start, body in chunks:
        out += start + struct.pack("<I", zlib.crc32(start + body)) + body
    return out + tail


def change_array(data: bytes, draw: Random) -> bytes:
    """Another shape, type or range of a .npy, or of one array of a .npz."""
    found: Any = np.load(io.BytesIO(data))
    out = io.BytesIO()
    if isinstance(found, np.ndarray):
        np.save(out, _change_array(found, draw))
    else:
        arrays = dict(found)
        name = draw.choice(sorted(arrays))
        arrays[name] = _change_array(arrays[name], draw)
        np.savez(out, **{draw.choice((name, name, "x", "")) if k == name else k: v
                         for k, v in arrays.items()})  # fmt: skip
    return out.getvalue()


def change_table(data: bytes, draw: Random) -> bytes:
    """A Parquet file without a column, with another one, or with other values."""
    # By no threads of Arrow's: a process forked from one that has them can hang.
    table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False)
    place = draw.randrange(table.num_columns)
    name, kind = table.column_names[place], draw.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.set_column(place, name, pa.array(["x"] * table.num_rows))
    elif kind == 2:
        table = table.set_column(place, name, pa.nulls(table.num_rows, table.column(name).type))
    elif kind == 3:
        table = table.slice(0, draw.randrange(table.num_rows))
    else:
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        table = table.replace_schema_metadata(
            {k: change_value(v.encode(), draw).decode() for k, v in metadata.items()}
        )
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _span(data: bytes, draw: Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 4, 64, 4096, len(data))))


def _change_tree(tree: Any, draw: Random) -> Any:
    """The tree with one node changed, removed, renamed or repeated."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items: Any = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    if isinstance(tree, dict | list):
        walk(tree)
    if not places or draw.random() < 0.02:
        return draw.choice(TYPES)
    holder, key = draw.choice(places)
    kind, value = draw.randrange(6), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(key) + "x"] = holder.pop(key)
    elif kind == 2 and isinstance(value, list):
        holder[key] = value[::-1] if draw.random() < 0.5 else value * 2
    elif isinstance(value, int | float) and kind < 5:
        holder[key] = draw.choice(EXTREMES + NOT_FINITE)
    else:
        holder[key] = draw.choice(TYPES + EXTREMES)
    return tree


def _change_array(array: np.ndarray, draw: Random) -> np.ndarray:
    kind = draw.randrange(8)
    if kind == 0:
        return array[: draw.randrange(len(array) + 1)] if array.ndim else array
    if kind == 1:
        return array[None]
    if kind == 2:
        return array.reshape(-1)
    if kind == 3:
        return array.T
    if kind == 4:
        return array.astype(draw.choice(("f4", "f8", "c8", "?", "i1", "u8", "U9", "M8[s]")))
    if kind == 5:
        return np.full(array.shape, draw.choice(NOT_FINITE), draw.choice(("f2", "f4", "f8")))
    if kind == 6:
        return array[..., :0] if array.ndim else array
    out = array.copy()
    if out.size and out.dtype.kind in "iuf":
        limit = np.iinfo(out.dtype) if out.dtype.kind in "iu" else np.finfo(out.dtype)
        out.reshape(-1)[draw.randrange(out.size)] = draw.choice((limit.max, limit.min))
    return out


def change_database(path: Path, draw: Random) -> None:
    """Another value in a row of an SQLite file, in place."""
    values = (None, b"", b"\0" * 7, "text", 3, 2.5, b"\xff" * 24, "[", "{}", "[[1]]")
    with sqlite3.connect(path) as file:
        names = [
            row[0] for row in file.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        table = draw.choice(names)
        columns = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
        if draw.random() < 0.1:
            file.execute(f"DROP TABLE {table}")
        else:
            file.execute(f"UPDATE {table} SET {columns[-1]} = ?", (draw.choice(values),))
    file.close()


BYTES: tuple[Damage, ...] = (truncate, flip_bits, overwrite, cut_out, repeat, exchange, append)
TEXT: tuple[Damage, ...] = (swap_tokens, change_number, change_lines)
BY_SUFFIX: dict[str, tuple[Damage, ...]] = {
    ".json": (*TEXT, *[change_value] * 5),
    ".jsonl": (*TEXT, *[change_line_value] * 5),
    ".yaml": (*TEXT, *[change_setting] * 5),
    ".csv": TEXT * 3,
    ".txt": TEXT * 3,
    ".safetensors": (change_tensors,) * 6,
    ".npy": (change_array,) * 6,
    ".npz": (change_array,) * 6,
    ".parquet": (change_table,) * 6,
    ".evt": (change_token_file,) * 8,
}


def mutate(path: Path, draw: Random) -> str:
    """Damage a file in place.

    Returns:
        What was done to it, by the name of the function.
    """
    if path.suffix == ".sqlite" and draw.random() < 0.5:
        change_database(path, draw)
        return "change_database"
    data = path.read_bytes()
    damage = draw.choice(BYTES + BY_SUFFIX.get(path.suffix, ()))
    path.write_bytes(damage(data, draw))
    return damage.__name__
