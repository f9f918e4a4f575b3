"""The bytes of token files: every value back, damage found, two readers that agree."""

from __future__ import annotations

import importlib.util
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evatok.core.errors import EvatokError
from tokenizer.evt.bits import pack_fields, read_varints, unpack_fields, write_varints
from tokenizer.evt.format import (
    CHUNK,
    Chunk,
    EvtError,
    Header,
    parse_video,
    video_payload,
    write_header,
)
from tokenizer.evt.reader import EvtReader
from tokenizer.evt.writer import SOUND_PIECE, EvtWriter, write_whole


def header(**changes: object) -> Header:
    values: dict[str, object] = {
        "model": "toy",
        "weights": "0123456789abcdef",
        "levels": (1, 2, 4),
        "codebook_size": 1000,
        "num_frames": 8,
        "frames_per_block": 4,
        "size": 16,
        "overlap": 4,
        "height": 24,
        "width": 40,
        "shown": (24, 40),
        "time_base": (1, 1000),
        "frames_per_chunk": 16,
    }
    return Header.model_validate(values | changes)


def chunk(head: Header, first: int, frames: int, seed: int = 0) -> Chunk:
    random = np.random.default_rng((seed, first))
    parts = tuple(
        random.choice(head.levels, (len(head.grid), count)) for count in head.blocks(frames)
    )
    ids = random.integers(0, head.codebook_size, sum(int(part.sum()) for part in parts))
    times = tuple((40 * (first + np.arange(frames))).tolist())
    return Chunk(first, times, parts, ids)


def write(path: Path, frames: int, complete: bool = True, **changes: object) -> list[Chunk]:
    head = header(**changes)
    with EvtWriter(path, head) as writer:
        for first in range(writer.next_frame, frames, 16):
            writer.write(chunk(head, first, min(16, frames - first)))
        writer.close(complete)
    return [chunk(head, first, min(16, frames - first)) for first in range(0, frames, 16)]


def same(a: Chunk, b: Chunk) -> bool:
    return (
        a.first == b.first
        and a.times == b.times
        and len(a.assignment) == len(b.assignment)
        and all(np.array_equal(x, y) for x, y in zip(a.assignment, b.assignment, strict=True))
        and np.array_equal(a.ids, b.ids)
    )


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_varints_round_trip(values: list[int]) -> None:
    assert read_varints(write_varints(values), 0, len(values))[0] == values


@given(st.integers(0, 20), st.data())
def test_fields_round_trip(width: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=30)), np.int64)
    bits = pack_fields(values, width)
    assert len(bits) == width * len(values)
    assert np.array_equal(unpack_fields(bits, len(values), width), values)


@settings(max_examples=40)
@given(
    frames=st.integers(1, 16),
    levels=st.sampled_from([(3,), (1, 2), (1, 2, 4, 8, 16)]),
    size=st.integers(2, 70_000),
    gaps=st.booleans(),
)
def test_video_payload_round_trip(
    frames: int, levels: tuple[int, ...], size: int, gaps: bool
) -> None:
    head = header(levels=levels, codebook_size=size)
    made = chunk(head, 32, frames)
    if gaps:
        random = np.random.default_rng(frames)
        times = np.cumsum(random.integers(1, 1 << 30, frames))
        made = Chunk(made.first, tuple(times.tolist()), made.assignment, made.ids)
    assert same(parse_video(head, 32, video_payload(head, made)), made)


def test_reader_gives_back_every_chunk(tmp_path: Path) -> None:
    chunks = write(tmp_path / "a.evt", 75)
    with EvtReader(tmp_path / "a.evt") as reader:
        assert reader.header == header() and reader.is_complete
        read = list(reader.chunks())
        assert all(same(a, b) for a, b in zip(read, chunks, strict=True)) and not reader.damage
        assert [part.first for part in reader.chunks(40, 60)] == [32, 48]
        assert reader.frame_at(float(50 * 40 * Fraction(1, 1000))) == 48


def test_a_chunk_from_the_middle_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that looks for the next chunk in a window of 64 KB would read most of the file."""
    write(tmp_path / "a.evt", 16 * 40)
    with EvtReader(tmp_path / "a.evt") as reader:
        read, ranges = reader.file.read, []

        def counted(size: int = -1) -> bytes:
            ranges.append(size)
            return read(size)

        seen = SimpleNamespace(seek=reader.file.seek, read=counted, close=reader.file.close)
        monkeypatch.setattr(reader, "file", seen)
        (found,) = reader.chunks(320, 336)
    assert found.first == 320 and sum(ranges) < (tmp_path / "a.evt").stat().st_size / 10


@pytest.mark.parametrize("damaged", [(0, 40, 30, 80), (0, 1 << 60), (-(1 << 60), 0)])
def test_times_that_cannot_be_are_refused(damaged: tuple[int, ...]) -> None:
    head = header()
    made = chunk(head, 0, len(damaged))
    with pytest.raises(EvatokError, match="do not ascend, or are beyond"):
        parse_video(head, 0, video_payload(head, replace(made, times=damaged)))


def test_a_chunk_with_times_before_the_last_is_damage(tmp_path: Path) -> None:
    head = header()
    first, second = chunk(head, 0, 16), chunk(head, 16, 16)
    with EvtWriter(tmp_path / "a.evt", head) as writer:
        writer.write(first)
        writer.write(replace(second, times=first.times))
        writer.close(complete=True)
    with EvtReader(tmp_path / "a.evt") as reader:
        assert [found.first for found in reader.chunks()] == [0]
        assert "times of frames before them" in reader.damage[0]


def test_independent_reader_agrees(tmp_path: Path) -> None:
    """Under a hundred lines of NumPy, written from the page, read the same."""
    path = Path(__file__).with_name("independent.py")
    assert len(path.read_text().splitlines()) < 100
    spec = importlib.util.spec_from_file_location("independent", path)
    assert spec is not None and spec.loader is not None
    other: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    chunks = write(tmp_path / "a.evt", 75)
    head, read, complete = other.read(tmp_path / "a.evt")
    assert complete and head["levels"] == [1, 2, 4]
    for (first, ticks, counts, ids), mine in zip(read, chunks, strict=True):
        assert first == mine.first and tuple(ticks) == mine.times
        assert counts == np.concatenate([x.reshape(-1) for x in mine.assignment]).tolist()
        assert ids == mine.ids.tolist()


def test_truncated_file_gives_all_that_is_whole(tmp_path: Path) -> None:
    chunks = write(tmp_path / "a.evt", 75)
    data = (tmp_path / "a.evt").read_bytes()
    with EvtReader(tmp_path / "a.evt") as reader:
        ends = [stop for _, stop, _ in reader.whole_chunks()]
    for length in range(ends[0], len(data), 7):
        (tmp_path / "b.evt").write_bytes(data[:length])
        with EvtReader(tmp_path / "b.evt") as reader:
            read = list(reader.chunks())
            whole = sum(end <= length for end in ends)
            assert len(read) == whole and all(map(same, read, chunks)), length
            assert reader.damage and not reader.is_complete


def test_damaged_chunk_costs_its_own_frames(tmp_path: Path) -> None:
    chunks = write(tmp_path / "a.evt", 75)
    data = (tmp_path / "a.evt").read_bytes()
    with EvtReader(tmp_path / "a.evt") as reader:
        places = [(start, stop) for start, stop, _ in reader.whole_chunks()]
    for lost, (start, stop) in enumerate(places):
        for place in (start, start + 3, start + 8, start + 12, (start + stop) // 2, stop - 1):
            broken = bytearray(data)
            broken[place] ^= 0x55
            (tmp_path / "b.evt").write_bytes(broken)
            with EvtReader(tmp_path / "b.evt") as reader:
                read = list(reader.chunks())
                left = [part for number, part in enumerate(chunks) if number != lost]
                assert all(same(a, b) for a, b in zip(read, left, strict=True)), (lost, place)
                assert len(reader.damage) == 1 and str(16 * lost) in reader.damage[0]


def write_sound(path: Path, sound: bytes) -> list[int]:
    """Write a file of one chunk and sound; return the byte where each piece begins, and the end."""
    head = header(sound="matroska")
    (path.parent / "sound").write_bytes(sound)
    with EvtWriter(path, head) as writer:
        writer.write(chunk(head, 0, 16))
        begin = writer.file.tell()
        writer.write_sound(path.parent / "sound")
        writer.close(complete=True)
    pieces = [len(sound[at : at + SOUND_PIECE]) for at in range(0, len(sound), SOUND_PIECE)]
    return np.cumsum([begin, *(CHUNK.size + size for size in pieces)]).tolist()


@pytest.mark.parametrize("lost", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}])
def test_damaged_sound_is_told_wherever_it_is(tmp_path: Path, lost: set[int]) -> None:
    """Also where the last pieces are lost: nothing else comes after them."""
    sound = bytes(range(256)) * 2500  # 2.4 pieces
    places = write_sound(tmp_path / "a.evt", sound)
    with EvtReader(tmp_path / "a.evt") as reader:
        assert b"".join(reader.sound()) == sound and not reader.damage
    data = bytearray((tmp_path / "a.evt").read_bytes())
    for piece in lost:
        data[places[piece] + 40] ^= 1
    (tmp_path / "b.evt").write_bytes(data)
    with EvtReader(tmp_path / "b.evt") as reader:
        assert b"".join(reader.sound()) == sound[: SOUND_PIECE * min(lost)]
        assert len(reader.damage) == 1 and "sound" in reader.damage[0]
    (tmp_path / "c.evt").write_bytes(data[: places[2]])  # cut off between two pieces
    with EvtReader(tmp_path / "c.evt") as reader:
        assert len(list(reader.sound())) == min(*lost, 2) and "sound" in reader.damage[0]


@pytest.mark.parametrize("seed", range(60))
def test_no_mutation_does_worse_than_an_error(tmp_path: Path, seed: int) -> None:
    """Bits flipped, pieces cut, doubled or moved: chunks that are right, or one clear error."""
    chunks = write(tmp_path / "a.evt", 75)
    random = np.random.default_rng(seed)
    data = bytearray((tmp_path / "a.evt").read_bytes())
    for _ in range(int(random.integers(1, 6))):
        place, length = int(random.integers(len(data))), int(random.integers(1, 60))
        what = int(random.integers(4))
        if what == 0:
            data[place] ^= 1 << int(random.integers(8))
        elif what == 1:
            del data[place : place + length]
        elif what == 2:
            data[place:place] = data[place : place + length]
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    (tmp_path / "b.evt").write_bytes(data)
    try:
        with EvtReader(tmp_path / "b.evt") as reader:
            read = list(reader.chunks())
    except EvtError as error:
        assert "b.evt" in str(error) and "\n" not in str(error)
        return
    assert all(any(same(part, mine) for mine in chunks) for part in read)


def test_writer_continues_after_a_kill(tmp_path: Path) -> None:
    """What was written is kept, half a chunk is not, and the end is the same file."""
    write(tmp_path / "whole.evt", 75)
    head, path = header(), tmp_path / "a.evt"
    writer = EvtWriter(path, head)
    for first in (0, 16, 32):
        writer.write(chunk(head, first, 16))
    writer.file.write(b"EV half a chunk")
    writer.file.close()
    assert not path.exists()
    with EvtWriter(path, head) as writer:
        assert writer.next_frame == 48 and writer.last_tick == 47 * 40
        for first in (48, 64):
            writer.write(chunk(head, first, min(16, 75 - first)))
        writer.close(complete=True)
    assert path.read_bytes() == (tmp_path / "whole.evt").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_interrupt_leaves_a_readable_file_that_can_be_continued(tmp_path: Path) -> None:
    write(tmp_path / "whole.evt", 75)
    head, path = header(), tmp_path / "a.evt"
    with pytest.raises(KeyboardInterrupt), EvtWriter(path, head) as writer:
        writer.write(chunk(head, 0, 16))
        raise KeyboardInterrupt
    with EvtReader(path) as reader:
        assert len(list(reader.chunks())) == 1 and not reader.is_complete
    write(path, 75)
    assert path.read_bytes() == (tmp_path / "whole.evt").read_bytes()


def test_writer_refuses_a_second_process(tmp_path: Path) -> None:
    with EvtWriter(tmp_path / "a.evt", header()) as first:
        first.write(chunk(header(), 0, 16))
        with pytest.raises(EvtError, match="another process"):
            EvtWriter(tmp_path / "a.evt", header())
    assert not (tmp_path / "a.evt").exists()


def begin(path: Path, head: Header, frames: int) -> None:
    """Write chunks and stop as a killed process does."""
    writer = EvtWriter(path, head)
    for first in range(0, frames, 16):
        writer.write(chunk(head, first, 16))
    writer.file.close()


def test_what_was_begun_with_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    """And begun anew where it holds no frames."""
    path, partial = tmp_path / "a.evt", tmp_path / "a.evt.partial"
    begin(path, header(), 32)
    kept = partial.read_bytes()
    told = (
        r"a\.evt\.partial was begun with other settings \(source '', not 'another'\): .*delete it"
    )
    with pytest.raises(EvtError, match=told):
        EvtWriter(path, header(source="another"))
    partial.write_bytes(b"something of mine")
    with pytest.raises(EvtError, match=r"a\.evt\.partial: no token file.*delete it"):
        EvtWriter(path, header())
    assert partial.read_bytes() == b"something of mine"
    partial.write_bytes(kept)
    write(path, 32)  # the settings that it was begun with
    begin(path, header(), 0)
    assert partial.stat().st_size > 0
    write(path, 16, source="another")
    assert [file.name for file in tmp_path.iterdir()] == ["a.evt"]


def test_an_interrupt_leaves_an_older_file_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.evt"
    write(path, 75)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), EvtWriter(path, header(source="other")) as writer:
        writer.write(chunk(header(), 0, 16))
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert "a.evt stays as it was; the 16 frames so far are in" in caplog.text
    with EvtWriter(path, header(source="other")) as writer:
        assert writer.next_frame == 16
        writer.close(complete=True)
    assert path.read_bytes() != before


def test_a_writer_of_no_frames_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), EvtWriter(tmp_path / "a.evt", header()):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@contextmanager
def small_disk(room: int) -> Iterator[None]:
    """No file may be longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_keeps_whole_chunks(tmp_path: Path) -> None:
    write(tmp_path / "whole.evt", 75)
    path, head = tmp_path / "a.evt", header()
    (tmp_path / "sound").write_bytes(bytes(1 << 19))
    size = (tmp_path / "whole.evt").stat().st_size
    with small_disk(size // 2), pytest.raises(OSError) as told, EvtWriter(path, head) as writer:
        for first in range(0, 75, 16):
            writer.write(chunk(head, first, min(16, 75 - first)))
    assert told.value.filename == str(path)
    write(path, 75)
    assert path.read_bytes() == (tmp_path / "whole.evt").read_bytes()
    with small_disk(size), pytest.raises(OSError) as told, EvtWriter(path, head) as writer:
        writer.write(chunk(head, 0, 16))
        writer.write_sound(tmp_path / "sound")
    assert told.value.filename == str(path)
    with small_disk(size // 2), pytest.raises(OSError) as told:
        write_whole(tmp_path / "b.evt", head, [chunk(head, n, 16) for n in range(0, 64, 16)], True)
    assert told.value.filename == str(tmp_path / "b.evt")
    left = {"whole.evt", "a.evt", "a.evt.partial", "sound"}
    assert {file.name for file in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no token file"),
        (b"RIFF0000", "no token file"),
        (b"EVT2\0\0\0\0", "format b'2'"),
        (b"EVT1\xff\xff\xff\xff", "damaged"),
        (b"EVT1\x02\0\0\0{}", "damaged"),
    ],
)
def test_what_is_no_token_file_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.evt").write_bytes(data)
    with pytest.raises(EvtError, match=words):
        EvtReader(tmp_path / "x.evt")


def test_header_refuses_sizes_that_disagree() -> None:
    for changes in ({"frames_per_chunk": 12}, {"overlap": 9}, {"levels": (2, 1)}, {"height": 0}):
        with pytest.raises(ValueError):
            header(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"shown": (1 << 24, 1 << 24)},
        {"shown": (1 << 15, 1 << 15), "fit": "stretch", "height": 16, "width": 16},
        {"shown": (1 << 15, 1 << 15), "height": 1 << 15, "width": 1 << 15},
        {"shown": (24, 41)},
        {"shown": (240, 40), "fit": "pad", "height": 16, "width": 16},
        {"shown": (24, 40), "fit": "crop"},
        {"frames_per_chunk": 1 << 20},
        {"num_frames": 1 << 20, "frames_per_chunk": 1 << 20},
        {"codebook_size": 1},
    ],
)
def test_a_header_of_impossible_sizes_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    head = header().model_copy(update=changes)
    with open(tmp_path / "x.evt", "wb") as file:
        write_header(file, head)
    with pytest.raises(EvtError, match=r"x\.evt: header ") as told:
        EvtReader(tmp_path / "x.evt")
    assert "\n" not in str(told.value)


def test_header_takes_the_sizes_that_each_fit_makes() -> None:
    header(fit="pad", height=16, width=8, shown=(240, 120))
    header(fit="stretch", height=16, width=16, shown=(2160, 4096))
    header(fit="crop", height=16, width=16, shown=(16, 16))
    header(height=8640, width=15360, shown=(8640, 15360))


def test_a_chunk_that_tells_more_blocks_than_it_has_bytes_for_is_refused() -> None:
    """A large picture of many tiny tiles, a chunk of many frames: nothing of it is allocated."""
    head = header(
        levels=(4,), size=1, overlap=0, height=8192, width=8192, shown=(8192, 8192),
        num_frames=1 << 16, frames_per_chunk=1 << 16,
    )  # fmt: skip
    tracemalloc.start()
    try:
        with pytest.raises(EvatokError, match="bytes are too few for"):
            parse_video(head, 0, write_varints([1 << 16, 0, 0, 1]) + bytes(20))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
