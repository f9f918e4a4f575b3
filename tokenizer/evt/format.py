"""The bytes of a token file (docs/format.md): a header, independent chunks, an index.

    "EVT1"  u32 length  header (JSON)  u32 CRC-32
    chunk*                             a run of frames each, then sound, then the index
    u32 bytes from the index to the end of the file   "EVTi"

A chunk is `"EV"  u8 kind  u24 length  u32 number  u32 CRC-32  payload`: what is damaged is found by
its checksum, and the next chunk by its two letters and its own. All numbers are little-endian.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from evatok.core.config import Config, PictureSize
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels
from tokenizer.evt.bits import (
    bit_width,
    pack_fields,
    read_varints,
    unpack_fields,
    write_varints,
)
from tokenizer.evt.pictures import Fit, coded_size, shown_size
from video.tiles import TileGrid

MAGIC, END = b"EVT1", b"EVTi"
SYNC = b"EV"
CHUNK = struct.Struct("<2sB3sI I".replace(" ", ""))
VIDEO, SOUND, INDEX = 1, 2, 3
MAX_HEADER = 1 << 20
MAX_PAYLOAD = (1 << 24) - 1
MAX_SIDE = 1 << 15
MAX_PIXELS = 1 << 27  # of a picture: 15 360 × 8 640 fits
MAX_FRAMES = 1 << 16  # of a chunk
MAX_TICK = 1 << 53

MAX_COUNT = 1 << 24  # of each part of a time base, too: earlier versions refuse more
COMMON_TICK = Fraction(1, 90_000)  # for times whose own unit is finer

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
FrameCount = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class EvtError(EvatokError):
    """A file that is no token file, or not one that can be read here."""


class Header(Config):
    """Header of a file: the JSON object at its start."""

    format: Literal[1] = 1
    model: str  # name by which the model was loaded
    weights: str  # `tokenizer.search.candidates.model_hash` of the tokenizer
    levels: tuple[Count, ...]
    codebook_size: Annotated[int, Field(ge=2, le=1 << 24)]
    num_frames: FrameCount  # of a clip
    frames_per_block: FrameCount
    size: PictureSize  # of a tile: the side of a square, or [height, width]
    overlap: Annotated[int, Field(ge=0)]
    height: Side  # of the coded picture
    width: Side
    shown: tuple[Side, Side]  # height and width to show it at
    time_base: tuple[Count, Count]  # seconds of one tick, a fraction
    frames_per_chunk: FrameCount
    fit: Fit = "tile"
    assignment: str = ""  # how the tokens were chosen, for people
    source: str = ""  # name of the file that was encoded
    sound: str = ""  # container of the sound, such as "matroska"; empty: none

    @model_validator(mode="after")
    def _agree(self) -> Header:
        Levels(self.levels)
        if self.num_frames % self.frames_per_block or self.frames_per_chunk % self.num_frames:
            raise EvatokError(
                f"{self.frames_per_chunk} frames of a chunk, {self.num_frames} of a clip and "
                f"{self.frames_per_block} of a block do not divide each other"
            )
        _ = self.grid
        if max(self.height * self.width, math.prod(self.shown)) > MAX_PIXELS:
            raise EvatokError(f"a picture of more than {MAX_PIXELS} pixels")
        coded, shown = (self.height, self.width), self.shown
        if coded != coded_size(self.fit, *shown, self.size) or shown != shown_size(
            self.fit, *shown, self.size
        ):
            raise EvatokError(
                f"a picture coded at {coded[0]} × {coded[1]} is not shown at {shown[0]} × "
                f"{shown[1]} where it is made to fit by {self.fit!r}"
            )
        return self

    @property
    def grid(self) -> TileGrid:
        """The tiles of the coded picture."""
        return TileGrid(self.height, self.width, self.size, self.overlap)

    @property
    def tick(self) -> Fraction:
        """Seconds of one unit of time."""
        return Fraction(*self.time_base)

    def blocks(self, frames: int) -> list[int]:
        """Blocks of each clip of a chunk of so many frames."""
        clips = [
            min(self.num_frames, frames - start) for start in range(0, frames, self.num_frames)
        ]
        return [-(-clip // self.frames_per_block) for clip in clips]


@dataclass(frozen=True)
class Chunk:
    """Some consecutive frames.

    Attributes:
        first: number of its first frame in the video.
        times: ticks of its frames, ascending.
        assignment: for each clip an (N tiles, T blocks) int64 array of token counts.
        ids: packed by clip, then tile, then block.
    """

    first: int
    times: tuple[int, ...]
    assignment: tuple[np.ndarray, ...]
    ids: np.ndarray


def header_bytes(header: Header) -> bytes:
    """The beginning of a file."""
    text = json.dumps(header.model_dump(mode="json"), separators=(",", ":")).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))


def write_header(file: BinaryIO, header: Header) -> None:
    """Begin a file."""
    file.write(header_bytes(header))


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header and stand behind it.

    Raises:
        EvtError: not a token file, of a later version, or its header is damaged.
    """
    start = file.read(8)
    if len(start) < 8 or start[:3] != MAGIC[:3]:
        raise EvtError(f"{name}: no token file (.evt)")
    if start[:4] != MAGIC:
        raise EvtError(f"{name}: format {start[3:4]!r} is not one that this version reads: b'1'")
    length = struct.unpack("<I", start[4:])[0]
    if length > MAX_HEADER:
        raise EvtError(f"{name}: the header is damaged ({length} bytes long)")
    text, check = file.read(length), file.read(4)
    if len(check) < 4 or struct.unpack("<I", check)[0] != zlib.crc32(text):
        raise EvtError(f"{name}: the header is damaged: encode the video again")
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EvtError(f"{name}: header {where}: {first['msg']}") from None


def chunk_bytes(kind: int, number: int, payload: bytes) -> bytes:
    """A chunk of a kind: `VIDEO` (number = first frame), `SOUND` (its place), `INDEX`."""
    if len(payload) > MAX_PAYLOAD:
        raise EvtError(f"a chunk of {len(payload)} bytes is longer than {MAX_PAYLOAD}: use fewer")
    start = struct.pack("<2sB3sI", SYNC, kind, len(payload).to_bytes(3, "little"), number)
    return start + struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))) + payload


def video_payload(header: Header, chunk: Chunk) -> bytes:
    """Frame count and times, then a bit field of all levels and one of all ids."""
    counts = np.concatenate([part.reshape(-1) for part in chunk.assignment])
    ranks = np.searchsorted(np.array(header.levels), counts)
    bits = np.concatenate(
        [
            pack_fields(ranks, bit_width(len(header.levels))),
            pack_fields(chunk.ids, bit_width(header.codebook_size)),
        ]
    )
    return times_bytes(chunk.times) + np.packbits(bits).tobytes()


def times_bytes(times: Sequence[int]) -> bytes:
    """Times of a chunk: count of frames, even or not, the first, the step or steps."""
    steps = np.diff(times).tolist()
    is_even = len(set(steps)) == 1
    return write_varints([len(times), not is_even, times[0], *(steps[:1] if is_even else steps)])


def parse_video(header: Header, first: int, payload: bytes) -> Chunk:
    """The inverse of `video_payload`.

    Raises:
        EvatokError: the payload does not fit the header.
    """
    (frames, is_uneven, start), position = read_varints(payload, 0, 3)
    if not 1 <= frames <= header.frames_per_chunk or is_uneven not in (0, 1):
        raise EvatokError(f"a chunk of {frames} frames")
    tiles, blocks = len(header.grid), header.blocks(frames)
    fields, width = tiles * sum(blocks), bit_width(len(header.levels))
    id_width = bit_width(header.codebook_size)
    if fields * (width + header.levels[0] * id_width) > 8 * len(payload):  # before it is allocated
        raise EvatokError(f"{len(payload)} bytes are too few for {fields} blocks")
    if is_uneven:
        steps, position = read_varints(payload, position, frames - 1)
    else:
        (step,), position = read_varints(payload, position, 1)
        steps = [step] * (frames - 1)
    times = (start, *(start + total for total in np.cumsum(steps, dtype=object).tolist()))
    if min(steps, default=1) < 1 or max(abs(times[0]), abs(times[-1])) > MAX_TICK:
        raise EvatokError("times that do not ascend, or are beyond any video's")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=position))
    ranks = unpack_fields(bits, fields, width)
    if ranks.size and ranks.max() >= len(header.levels):
        raise EvatokError("a level that does not exist")
    counts = np.array(header.levels)[ranks]
    ids = unpack_fields(bits[fields * width :], int(counts.sum()), id_width)
    if ids.size and ids.max() >= header.codebook_size:
        raise EvatokError("a code that does not exist")
    ends = np.cumsum([tiles * count for count in blocks])[:-1]
    parts = [part.reshape(tiles, -1) for part in np.split(counts, ends)]
    return Chunk(first, times, tuple(parts), ids)


def index_payload(chunks: list[tuple[int, int, int]], complete: bool) -> bytes:
    """Whether all of the source is there, then (byte, first frame, tick) of each video chunk."""
    rows = np.array(chunks, dtype=object).reshape(-1, 3)
    steps = np.diff(rows, axis=0, prepend=np.zeros((1, 3), dtype=object))
    return write_varints([int(complete), len(rows), *(int(value) for value in steps.reshape(-1))])


def parse_index(payload: bytes) -> tuple[bool, list[tuple[int, int, int]]]:
    """The inverse of `index_payload`.

    Raises:
        EvatokError: no such numbers.
    """
    (complete, count), position = read_varints(payload, 0, 2)
    if not 0 <= count <= len(payload):
        raise EvatokError("an index with more rows than bytes")
    steps, _ = read_varints(payload, position, 3 * count)
    rows = np.cumsum(np.array(steps, dtype=object).reshape(-1, 3), axis=0)
    return bool(complete), [(int(a), int(b), int(c)) for a, b, c in rows]
