"""A second reader of token files, from docs/format.md alone: standard library and NumPy."""

import json
import pathlib
import struct
import sys
import zlib

import numpy as np


def varint(data, at):
    code = shift = 0
    while True:
        code |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return (code >> 1 if code % 2 == 0 else -(code >> 1) - 1), at


def starts(length, size, overlap):
    if length <= size:
        return [0]
    steps = -(-(length - size) // (size - overlap))
    return [round(i * (length - size) / steps) for i in range(steps + 1)]


def fields(bits, at, count, width):
    part = bits[at : at + count * width].reshape(count, width)
    return [int("".join(map(str, row)), 2) if width else 0 for row in part], at + count * width


def read(path):
    """(header, chunks, is_complete): of a chunk its first frame, ticks, token counts and ids."""
    data = pathlib.Path(path).read_bytes()
    assert data[:4] == b"EVT1"
    (length,) = struct.unpack_from("<I", data, 4)
    text = data[8 : 8 + length]
    assert struct.unpack_from("<I", data, 8 + length)[0] == zlib.crc32(text)
    head, at, chunks, complete = json.loads(text), 12 + length, [], False
    grid = [starts(head[side], head["size"], head["overlap"]) for side in ("height", "width")]
    tiles = len(grid[0]) * len(grid[1])
    level_bits = (len(head["levels"]) - 1).bit_length()
    code_bits = (head["codebook_size"] - 1).bit_length()
    while data[at : at + 2] == b"EV" and data[at : at + 4] != b"EVTi":
        kind, size = data[at + 2], int.from_bytes(data[at + 3 : at + 6], "little")
        number, check = struct.unpack_from("<II", data, at + 6)
        payload = data[at + 14 : at + 14 + size]
        assert check == zlib.crc32(data[at : at + 10] + payload)
        at += 14 + size
        if kind == 3:
            complete = bool(varint(payload, 0)[0])
            break
        if kind != 1:
            continue
        frames, p = varint(payload, 0)
        uneven, p = varint(payload, p)
        tick, p = varint(payload, p)
        ticks, step = [tick], 0
        if not uneven:
            step, p = varint(payload, p)
        for _ in range(frames - 1):
            if uneven:
                step, p = varint(payload, p)
            ticks.append(ticks[-1] + step)
        clips = [min(head["num_frames"], frames - i) for i in range(0, frames, head["num_frames"])]
        blocks = [-(-clip // head["frames_per_block"]) for clip in clips]
        bits = np.unpackbits(np.frombuffer(payload[p:], np.uint8))
        ranks, q = fields(bits, 0, tiles * sum(blocks), level_bits)
        counts = [head["levels"][rank] for rank in ranks]
        ids, _ = fields(bits, q, sum(counts), code_bits)
        chunks.append((number, ticks, counts, ids))
    return head, chunks, complete


if __name__ == "__main__":
    header, parts, whole = read(sys.argv[1])
    print(header, sum(len(part[3]) for part in parts), "tokens", "complete" if whole else "broken")
