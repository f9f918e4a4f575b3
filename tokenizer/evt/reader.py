"""Read a token file: whole, from any frame, or as far as it is intact."""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tokenizer.evt.format import (
    CHUNK,
    END,
    INDEX,
    SOUND,
    SYNC,
    VIDEO,
    Chunk,
    EvtError,
    Header,
    parse_index,
    parse_video,
    read_header,
)

WINDOW = 1 << 16  # bytes looked through at a time for the next intact chunk


@dataclass(frozen=True)
class Raw:
    """A chunk whose checksum is right.

    Attributes:
        start: first byte of it in the file.
        stop: first byte after it.
        kind: `VIDEO`, `SOUND` or `INDEX`.
        number: first frame, or place among the sound chunks.
        payload: its bytes.
    """

    start: int
    stop: int
    kind: int
    number: int
    payload: bytes


class EvtReader:
    """One open file.

    Attributes:
        header: what a decoder must know.
        damage: one sentence for each thing that could not be read; grows while reading.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a file and read header and index.

        Raises:
            EvtError: not a token file, or its header is damaged.
        """
        self.path = Path(path)
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115  closed by `__exit__`
        except OSError as error:
            raise EvtError(f"{self.path}: {error.strerror}") from None
        self.damage: list[str] = []
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            self.header: Header = read_header(self.file, str(self.path))
        except BaseException:
            self.file.close()
            raise
        self.header_end = self.file.tell()
        self._index_start: int | None = None
        self.is_complete, self._index = self._read_index()

    def __enter__(self) -> EvtReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _read_index(self) -> tuple[bool, list[tuple[int, int, int]] | None]:
        """Whether the source was encoded to its end, and where chunks are; None: unknown."""
        if self.size < self.header_end + 8:
            return False, None
        self.file.seek(self.size - 8)
        tail = self.file.read(8)
        start = self.size - struct.unpack("<I", tail[:4])[0]
        raw = self._chunk_at(start) if tail[4:] == END and start >= self.header_end else None
        if raw is None or raw.kind != INDEX:
            return False, None
        try:
            complete, rows = parse_index(raw.payload)
        except ValueError:
            return False, None
        places = [row[0] for row in rows]
        if places != sorted(places) or (places and not self.header_end <= places[0]):
            return False, None
        self._index_start = start
        return complete, rows

    def _chunk_at(self, start: int) -> Raw | None:
        """The chunk that begins at a byte, if its checksum is right."""
        self.file.seek(start)
        head = self.file.read(CHUNK.size)
        if len(head) < CHUNK.size:
            return None
        sync, kind, length_bytes, number, check = CHUNK.unpack(head)
        length = int.from_bytes(length_bytes, "little")
        if sync != SYNC or kind not in (VIDEO, SOUND, INDEX):
            return None
        if start + CHUNK.size + length > self.size:
            return None
        payload = self.file.read(length)
        if zlib.crc32(payload, zlib.crc32(head[:-4])) != check:
            return None
        return Raw(start, start + CHUNK.size + length, kind, number, payload)

    def _next_chunk(self, start: int) -> Raw | None:
        """The first intact chunk at or after a byte."""
        raw = self._chunk_at(start)
        if raw is not None:  # nothing but the chunk is read
            return raw
        while start < self.size:
            self.file.seek(start)
            window = self.file.read(WINDOW)
            place = window.find(SYNC)
            while place >= 0:
                raw = self._chunk_at(start + place)
                if raw is not None:
                    return raw
                place = window.find(SYNC, place + 1)
            start += max(1, len(window) - 1)
        return None

    def _raw_chunks(self, start: int) -> Iterator[Raw]:
        """Intact chunks from a byte on; what lies between is passed over."""
        while (raw := self._next_chunk(start)) is not None:
            if raw.kind == INDEX and raw.stop + 8 >= self.size:
                return
            yield raw
            start = raw.stop

    def whole_chunks(self) -> Iterator[tuple[int, int, Chunk]]:
        """Video chunks from the start, with first and last byte, up to the first damage."""
        start, frame = self.header_end, 0
        while (raw := self._chunk_at(start)) is not None and raw.kind == VIDEO:
            try:
                chunk = parse_video(self.header, raw.number, raw.payload)
            except ValueError:
                return
            if chunk.first != frame:
                return
            yield raw.start, raw.stop, chunk
            start, frame = raw.stop, frame + len(chunk.times)

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[Chunk]:
        """Chunks that hold any of the frames [first, last), in order.

        Damaged ones are passed over and described in `damage`.
        """
        expected = first // self.header.frames_per_chunk * self.header.frames_per_chunk
        last_tick: int | None = None
        for raw in self._raw_chunks(self._start_of(first)):
            if raw.kind != VIDEO:
                break
            if raw.number < expected:  # before the wanted ones, or twice
                continue
            if last is not None and raw.number >= last:
                break
            try:
                chunk = parse_video(self.header, raw.number, raw.payload)
            except ValueError as error:
                self.damage.append(f"frames from {raw.number} on: {error}")
                continue
            if last_tick is not None and chunk.times[0] <= last_tick:
                self.damage.append(f"frames from {raw.number} on: times of frames before them")
                continue
            if raw.number > expected:
                self.damage.append(f"frames {expected} to {raw.number - 1} are damaged")
            expected, last_tick = raw.number + len(chunk.times), chunk.times[-1]
            yield chunk
        if self._index is None:
            self.damage.append(f"the file breaks off before frame {expected}")
        elif any(expected <= row[1] and (last is None or row[1] < last) for row in self._index):
            self.damage.append(f"frames from {expected} on are damaged")

    def before(self, first: int) -> Chunk | None:
        """The chunk that ends where a chunk begins; None where it is not to be had."""
        if first == 0 or not self._index:
            return None
        raw = self._chunk_at(self._start_of(first - 1))
        if raw is None or raw.kind != VIDEO:
            return None
        try:
            chunk = parse_video(self.header, raw.number, raw.payload)
        except ValueError:
            return None
        return chunk if chunk.first + len(chunk.times) == first else None

    def _start_of(self, frame: int) -> int:
        """Byte from which to read for a frame."""
        if not self._index:
            return self.header_end
        place = bisect_right([row[1] for row in self._index], frame) - 1
        return self._index[max(0, place)][0]

    @property
    def first_tick(self) -> int:
        """Time of the first frame, from the index or the first intact chunk."""
        if self._index:
            return self._index[0][2]
        return next((chunk.times[0] for _, _, chunk in self.whole_chunks()), 0)

    @property
    def num_frames(self) -> int | None:
        """Frames of the file, from its index and its last chunk; None where they are damaged."""
        chunk = self._last_chunk()
        return None if chunk is None else chunk.first + len(chunk.times)

    @property
    def seconds(self) -> Fraction | None:
        """Seconds from the first frame to the last; None where `num_frames` is."""
        chunk = self._last_chunk()
        return None if chunk is None else (chunk.times[-1] - self.first_tick) * self.header.tick

    def _last_chunk(self) -> Chunk | None:
        raw = self._chunk_at(self._index[-1][0]) if self._index else None
        if raw is None or raw.kind != VIDEO:
            return None
        try:
            return parse_video(self.header, raw.number, raw.payload)
        except ValueError:
            return None

    def frame_at(self, seconds: float) -> int:
        """A frame at or before a time after the first: the start of its chunk."""
        if not self._index:
            return 0
        wanted = self._index[0][2] + seconds / self.header.tick
        place = bisect_right([row[2] for row in self._index], wanted) - 1
        return self._index[max(0, place)][1]

    def sound(self) -> Iterator[bytes]:
        """The pieces of the sound file, up to the first that is damaged, told in `damage`."""
        if not self.header.sound:
            return
        start = self._index[-1][0] if self._index else self.header_end
        number, stop = 0, None
        for raw in self._raw_chunks(start):
            if raw.kind != SOUND:
                continue
            if raw.number != number or (stop is not None and raw.start != stop):
                self.damage.append("the sound is damaged")
                return
            yield raw.payload
            number, stop = number + 1, raw.stop
        if number == 0:
            is_begun = self._index is not None and not self.is_complete
            why = ": the encoding was broken off before it" if is_begun else ""
            self.damage.append(f"the sound is missing{why}")
        elif stop != self._index_start:  # no index: the pieces may have gone on
            self.damage.append("the sound is damaged at its end")
