"""Write a token file chunk by chunk, so that what is written survives and can be continued."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType

from tokenizer.evt.format import (
    END,
    INDEX,
    SOUND,
    VIDEO,
    Chunk,
    EvtError,
    Header,
    chunk_bytes,
    index_payload,
    video_payload,
    write_header,
)
from tokenizer.evt.reader import EvtReader

SOUND_PIECE = 1 << 18  # bytes of one sound chunk


class EvtWriter:
    """Appends chunks to `FILE.partial`, which becomes FILE when it is closed.

    A partial file of the same header, or a file that was closed before its end, is continued:
    `next_frame` says where. A process that is killed loses the chunk it was writing, no more.
    """

    def __init__(self, path: Path, header: Header) -> None:
        """Begin or continue a file.

        Raises:
            EvtError: another process writes it.
        """
        self.path, self.header = path, header
        self.partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.partial.exists() and self._may_continue(path):
            os.replace(path, self.partial)
        self.file = open(self.partial, "a+b")  # noqa: SIM115  closed by `close` or `__exit__`
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise EvtError(f"{path}: another process is encoding it: wait, or stop it") from None
        self.chunks: list[tuple[int, int, int]] = []
        self.next_frame = 0
        self.last_tick: int | None = None
        self._resume()

    def _may_continue(self, path: Path) -> bool:
        if not path.is_file():
            return False
        try:
            with EvtReader(path) as reader:
                return reader.header == self.header and not reader.is_complete
        except EvtError:  # some other file of that name: it is replaced at the end
            return False

    def _resume(self) -> None:
        """Keep the chunks that are whole; begin anew where the header is not this one."""
        end, full = 0, self.header.frames_per_chunk
        if self.partial.stat().st_size:
            try:
                with EvtReader(self.partial) as reader:
                    if reader.header == self.header:
                        end = reader.header_end
                        for start, stop, chunk in reader.whole_chunks():
                            if len(chunk.times) < full:  # the last one before a Ctrl-C
                                break
                            self.chunks.append((start, chunk.first, chunk.times[0]))
                            self.next_frame = chunk.first + full
                            self.last_tick, end = chunk.times[-1], stop
            except EvtError:
                end = 0
        self.file.truncate(end)
        self.file.seek(end)
        if end == 0:
            write_header(self.file, self.header)

    def write(self, chunk: Chunk) -> None:
        """Append the next frames."""
        if chunk.first != self.next_frame:
            raise RuntimeError(f"frame {chunk.first} does not follow {self.next_frame - 1}")
        self.chunks.append((self.file.tell(), chunk.first, chunk.times[0]))
        self.file.write(chunk_bytes(VIDEO, chunk.first, video_payload(self.header, chunk)))
        self.file.flush()
        self.next_frame += len(chunk.times)
        self.last_tick = chunk.times[-1]

    def write_sound(self, path: Path) -> None:
        """Append a file of sound after the last frames."""
        with open(path, "rb") as sound:
            for number in range(1 << 31):
                piece = sound.read(SOUND_PIECE)
                if not piece:
                    return
                self.file.write(chunk_bytes(SOUND, number, piece))

    def close(self, complete: bool) -> None:
        """Write the index, make it last, and give the file its name.

        Args:
            complete: all frames of the source are there.
        """
        start = self.file.tell()
        self.file.write(chunk_bytes(INDEX, 0, index_payload(self.chunks, complete)))
        distance = self.file.tell() + 4 + len(END) - start
        self.file.write(struct.pack("<I", distance) + END)
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.file.close()

    def __enter__(self) -> EvtWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After Ctrl-C a readable, incomplete file; after other errors the partial one."""
        if self.file.closed:
            return
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.chunks:
            self.close(complete=False)
        self.file.close()
