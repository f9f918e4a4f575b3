"""Write a token file chunk by chunk, so that what is written survives and can be continued."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from evatok.core.files import atomic_file, naming, sync
from tokenizer.evt.format import (
    CHUNK,
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

logger = logging.getLogger(__name__)

SOUND_PIECE = 1 << 18  # bytes of one sound chunk


def sound_size(size: int) -> int:
    """Bytes that a file of sound of so many bytes takes in a token file."""
    return size + CHUNK.size * -(-size // SOUND_PIECE)


class ChunkWriter:
    """Appends chunks to an open file that begins with a header.

    Attributes:
        chunks: (byte, first frame, tick) of each chunk of frames so far.
        next_frame: number of the frame that comes next.
        last_tick: time of the frame before it; None: there is none.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.file, self.header = file, header
        self.chunks: list[tuple[int, int, int]] = []
        self.next_frame = 0
        self.last_tick: int | None = None

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

    def write_end(self, complete: bool) -> None:
        """Write the index and the end; complete: all frames of the source are there."""
        start = self.file.tell()
        self.file.write(chunk_bytes(INDEX, 0, index_payload(self.chunks, complete)))
        distance = self.file.tell() + 4 + len(END) - start
        self.file.write(struct.pack("<I", distance) + END)
        self.file.flush()


def write_whole(path: Path, header: Header, chunks: Iterable[Chunk], complete: bool) -> None:
    """Write a token file without sound, whole or not at all.

    Args:
        path: of the file.
        header: of the file.
        chunks: all of them, in order.
        complete: they hold all frames of the source.
    """
    with atomic_file(path) as partial, open(partial, "wb") as file:
        write_header(file, header)
        writer = ChunkWriter(file, header)
        for chunk in chunks:
            writer.write(chunk)
        writer.write_end(complete)


class EvtWriter(ChunkWriter):
    """Appends chunks to `FILE.partial`, which becomes FILE when it is closed.

    A partial file of the same header, or a file that was closed before its end, is continued:
    `next_frame` says where. A process that is killed loses the chunk it was writing, no more.
    An error of the disk names FILE.
    """

    def __init__(self, path: Path, header: Header) -> None:
        """Begin or continue a file.

        Raises:
            EvtError: another process writes it, or the partial file holds chunks of another header.
            OSError: it cannot be written.
        """
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.partial.exists() and self._may_continue(path, header):
            os.replace(path, self.partial)
        file = open(self.partial, "a+b")  # noqa: SIM115  closed by `close` or `__exit__`
        super().__init__(file, header)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_new = self._resume() == 0
        except BlockingIOError:
            file.close()
            raise EvtError(f"{path}: another process is encoding it: wait, or stop it") from None
        except BaseException:
            file.close()
            raise
        if self._is_new:
            with naming(path):
                write_header(file, header)

    def _may_continue(self, path: Path, header: Header) -> bool:
        if not path.is_file():
            return False
        try:
            with EvtReader(path) as reader:
                return reader.header == header and not reader.is_complete
        except EvtError:  # some other file of that name: it is replaced at the end
            return False

    def _resume(self) -> int:
        """Keep the chunks that are whole; return the number of bytes that stay.

        Raises:
            EvtError: they are of another header.
        """
        end, full = 0, self.header.frames_per_chunk
        if self.partial.stat().st_size:
            try:
                reader = EvtReader(self.partial)
            except EvtError as error:
                raise EvtError(f"{error}: it cannot be continued: delete it") from None
            with reader:
                if reader.header == self.header:
                    end = reader.header_end
                    for start, stop, chunk in reader.whole_chunks():
                        if len(chunk.times) < full:  # the last one before a Ctrl-C
                            break
                        self.chunks.append((start, chunk.first, chunk.times[0]))
                        self.next_frame = chunk.first + full
                        self.last_tick, end = chunk.times[-1], stop
                elif next(reader.whole_chunks(), None) is not None:
                    raise EvtError(self._refusal(reader.header))
        self.file.truncate(end)
        self.file.seek(end)
        return end

    def _refusal(self, begun: Header) -> str:
        """Say how the header of a partial file is another one."""
        theirs, ours = (head.model_dump(mode="json") for head in (begun, self.header))
        differ = [
            f"{key} {theirs[key]!r}, not {value!r}"
            for key, value in ours.items()
            if theirs[key] != value
        ]
        return (
            f"{self.partial} was begun with other settings ({'; '.join(differ)}): set them back, "
            "delete it, or name another output"
        )

    def write(self, chunk: Chunk) -> None:
        """Append the next frames."""
        with naming(self.path):
            super().write(chunk)

    def write_sound(self, path: Path) -> None:
        """Append a file of sound after the last frames."""
        with naming(self.path):
            super().write_sound(path)

    def close(self, complete: bool) -> None:
        """Write the index, make it last, and give the file its name.

        Args:
            complete: all frames of the source are there.
        """
        with naming(self.path):
            self.write_end(complete)
            os.fsync(self.file.fileno())
            os.replace(self.partial, self.path)
            sync(self.path.parent)
        self.file.close()

    def __enter__(self) -> EvtWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the partial file, if it holds frames.

        After Ctrl-C it becomes a readable, incomplete file, unless there is a file of that name.
        """
        if self.file.closed:
            return
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt) and self.chunks:
                if self.path.exists():
                    logger.warning(
                        "%s stays as it was; the %d frames so far are in %s: the same command "
                        "goes on from there", self.path, self.next_frame, self.partial,
                    )  # fmt: skip
                else:
                    self.close(complete=False)
            if self._is_new and not self.chunks:
                self.partial.unlink(missing_ok=True)
        finally:
            try:
                self.file.close()
            except OSError:  # a full disk is asked once more for what it has not taken
                if kind is None:
                    raise
