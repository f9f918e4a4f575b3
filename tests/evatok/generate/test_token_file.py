"""Whole videos into token files and back, through the functions that the commands call."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
import torch

from evatok.cli.app import main
from evatok.cli.commands.token_file import Pace
from evatok.core.errors import EvatokError
from evatok.generate.decoding import _decoded, decode_file, show_file
from evatok.generate.reconstruct import reconstruct_files
from evatok.generate.token_file import EncodeSettings, encode_file, targets
from evatok.generate.token_rate import Rate
from evatok.hub import Models, load, save_model
from tokenizer.coding.exact import ExactEncoder
from tokenizer.evt.codec import ChunkDecoder
from tokenizer.evt.format import CHUNK, SOUND, EvtError, chunk_bytes, write_header
from tokenizer.evt.reader import EvtReader
from tokenizer.router import Router, RouterConfig
from video.decoding.container import VideoError
from video.reading import iter_timed, read_frames
from video.timed import write_timed
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]
TICK = Fraction(1, 25)


@pytest.fixture
def video(square: Square, tmp_path: Path) -> Path:
    """75 frames of 46 × 38 pixels, every third frame late."""
    path = tmp_path / "in.mp4"
    times = [40 * index + 7 * (index % 3) for index in range(75)]
    frames = square(75, 38, 46, 0)
    write_timed(path, zip(times, frames, strict=True), Fraction(1, 1000))
    return path


@pytest.fixture(scope="session")
def conditioned(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The toy parts and a router with w_q as an input, whose choices depend on it."""
    root = tmp_path_factory.mktemp("conditioned") / "models"
    shutil.copytree(toy_dir, root)
    torch.manual_seed(5)
    router = Router(
        RouterConfig(
            levels=(1, 2, 4), num_frames=16, size=32, width=16, layers=1, heads=2, preference=True
        )
    )
    with torch.no_grad():  # the more w_q, the more tokens
        lengths = router.levels.candidates(4).sum(1).float()
        router.head.weight.normal_(std=0.3)
        router.head.bias.copy_(-0.05 * (lengths - 9).square())
        assert router.preference is not None
    save_model(router, root / "preference")
    return load(root)


def chunks(path: Path) -> list[tuple[list[int], list[int]]]:
    with EvtReader(path) as reader:
        return [
            (np.concatenate([p.reshape(-1) for p in c.assignment]).tolist(), c.ids.tolist())
            for c in reader.chunks()
        ]


def times_of(path: Path) -> list[Fraction]:
    return [time for time, _ in iter_timed(path)]


@pytest.mark.parametrize("fit", ["tile", "crop", "pad", "stretch"])
def test_round_trip_keeps_frames_times_and_size(
    toy: Models, video: Path, tmp_path: Path, fit: str
) -> None:
    settings = EncodeSettings(fit=fit)  # type: ignore[arg-type]
    told = encode_file(toy, video, tmp_path / "a.evt", settings=settings)
    assert told["frames"] == 75 and told["complete"] and not told["damage"]
    assert told["tiles"] == (4 if fit == "tile" else 1)
    decode_file(toy, tmp_path / "a.evt", tmp_path / "b.mp4")
    frames = read_frames(tmp_path / "b.mp4")
    assert tuple(frames.shape) == ((75, 32, 32, 3) if fit == "crop" else (75, 38, 46, 3))
    assert times_of(tmp_path / "b.mp4") == times_of(video)


def test_ids_do_not_depend_on_batches_threads_or_interruptions(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    encode_file(toy, video, tmp_path / "a.evt")
    whole = (tmp_path / "a.evt").read_bytes()
    threads = torch.get_num_threads()
    for batch_size, count in ((1, 1), (5, 2), (7, 1)):
        torch.set_num_threads(count)
        settings = EncodeSettings(batch_size=batch_size)
        try:
            encode_file(toy, video, tmp_path / "b.evt", settings=settings)
        finally:
            torch.set_num_threads(threads)
        assert (tmp_path / "b.evt").read_bytes() == whole

    def interrupt(_file: str, _done: int, total: int | None) -> None:
        assert total == 75
        raise KeyboardInterrupt

    for _ in range(2):  # the first frames, then a broken-off file goes on
        with pytest.raises(KeyboardInterrupt):
            encode_file(toy, video, tmp_path / "c.evt", progress=interrupt)
    assert show_file(tmp_path / "c.evt")["frames"] == 75
    assert not show_file(tmp_path / "c.evt")["complete"]
    encode_file(toy, video, tmp_path / "c.evt")
    assert (tmp_path / "c.evt").read_bytes() == whole


def test_refined_files_are_as_long_and_nearer(
    toy: Models, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And their header tells the steps."""
    encode_file(toy, video, tmp_path / "a.evt")
    plain = show_file(tmp_path / "a.evt")
    words = ["encode", str(video), "--model", str(toy.directory), "--refine", "6", "--json"]
    assert main([*words, "-o", str(tmp_path / "b.evt")]) == 0
    refined = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert refined["assignment"] == "router refined 6" and plain["assignment"] == "router"
    assert refined["tokens"] == plain["tokens"]
    found, before = chunks(tmp_path / "b.evt"), chunks(tmp_path / "a.evt")
    assert [lengths for lengths, _ in found] == [lengths for lengths, _ in before]
    assert found != before
    settings = [EncodeSettings(fit="crop", refine_steps=steps) for steps in (0, 6)]
    quality = [
        reconstruct_files(toy, [video], tmp_path / str(x.refine_steps), settings=x)["psnr_pooled"]
        for x in settings
    ]
    assert quality[1] > quality[0]
    with pytest.raises(EvatokError, match="-1 steps"):
        EncodeSettings(refine_steps=-1)
    for command in ("encode", "reconstruct"):
        words = [command, str(video), "-o", str(tmp_path / "c"), "--refine", "-1"]
        assert main(words) == 2 and "--refine" in capsys.readouterr().err


def test_a_refined_file_that_was_broken_off_goes_on(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    """One begun with other steps, or none, is begun anew."""
    settings = EncodeSettings(refine_steps=3)
    encode_file(toy, video, tmp_path / "a.evt", settings=settings)

    def interrupt(_file: str, _done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    for begun in (3, 0, 2):
        other = EncodeSettings(refine_steps=begun)
        with pytest.raises(KeyboardInterrupt):
            encode_file(toy, video, tmp_path / "b.evt", settings=other, progress=interrupt)
        encode_file(toy, video, tmp_path / "b.evt", settings=settings)
        assert (tmp_path / "a.evt").read_bytes() == (tmp_path / "b.evt").read_bytes()
        (tmp_path / "b.evt").unlink()


def test_part_of_a_video_is_the_same_clips(toy: Models, video: Path, tmp_path: Path) -> None:
    """From a clip's border on, a part has the ids of the whole."""
    encode_file(toy, video, tmp_path / "a.evt")
    times = times_of(video)
    start = float(times[64] - times[0])
    encode_file(toy, video, tmp_path / "b.evt", settings=EncodeSettings(start=start))
    assert chunks(tmp_path / "b.evt") == chunks(tmp_path / "a.evt")[1:]


def test_decoding_from_the_middle_is_the_middle(toy: Models, video: Path, tmp_path: Path) -> None:
    encode_file(toy, video, tmp_path / "a.evt", settings=EncodeSettings(clips_per_chunk=1))
    decode_file(toy, tmp_path / "a.evt", tmp_path / "all.mkv")
    whole = list(iter_timed(tmp_path / "all.mkv"))
    part = decode_file(toy, tmp_path / "a.evt", tmp_path / "part.mkv", start=1.0, end=2.0)
    wanted = [time for time, _ in whole if 1 <= time - whole[0][0] < 2]
    found = list(iter_timed(tmp_path / "part.mkv"))
    assert part["frames"] == len(wanted) == len(found)
    first = next(place for place, (time, _) in enumerate(whole) if time == wanted[0])
    for (_, a), (_, b) in zip(whole[first:], found, strict=False):
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 8  # two H.264 encodings of it


def test_pictures_and_gifs(toy: Models, square: Square, tmp_path: Path) -> None:
    """A picture is a video of one block."""
    from PIL import Image

    Image.fromarray(square(1, 38, 46, 0)[0]).save(tmp_path / "p.png")
    told = encode_file(toy, tmp_path / "p.png", tmp_path / "p.evt")
    assert told["frames"] == 1 and sum(told["blocks_at_level"].values()) == 4  # one a tile
    decode_file(toy, tmp_path / "p.evt", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (46, 38)
    write_video(tmp_path / "g.gif", square(20, 38, 46, 0), 10)
    encode_file(toy, tmp_path / "g.gif", tmp_path / "g.evt")
    decode_file(toy, tmp_path / "g.evt", tmp_path / "again.gif")
    assert times_of(tmp_path / "again.gif") == times_of(tmp_path / "g.gif")
    with pytest.raises(EvtError, match="holds one frame"):
        decode_file(toy, tmp_path / "g.evt", tmp_path / "again.png")


def test_pictures_have_a_model_of_their_own(
    square: Square, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none is named, the file decides: on the way back, by what is written in it."""
    from PIL import Image

    across, down = np.linspace(20, 200, 90), np.linspace(0, 30, 70)[:, None]
    picture = np.stack([across + down, across + 0.5 * down, across + 0 * down], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    write_video(tmp_path / "g.gif", square(3, 38, 46, 0), 10)
    files = [str(tmp_path / "p.png"), str(tmp_path / "g.gif")]
    assert main(["encode", *files, "-o", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    assert [row["model"] for row in told] == ["images", "nano"]
    assert main(["decode", str(tmp_path / "p.evt"), "-o", str(tmp_path / "again.png")]) == 0
    error = read_frames(tmp_path / "again.png")[0].numpy() - picture.astype(float)
    assert np.square(error).mean() < 65025 / 10**2.5  # 25 dB
    other = ["--model", "nano", "-o", str(tmp_path / "b.png")]
    assert main(["decode", str(tmp_path / "p.evt"), *other]) == 2
    assert "encoded with 'images'" in capsys.readouterr().err


def test_a_conditioned_router_alone_is_the_router(conditioned: Models, tmp_path: Path) -> None:
    """A shipped folder may hold just that and a tokenizer, which then searches too."""
    for part in ("final", "preference"):
        shutil.copytree(conditioned.folder(part), tmp_path / part)
    alone = load(tmp_path)
    clips = torch.rand(2, 3, 16, 32, 32) * 2 - 1
    assert alone.assigner("router")(clips).equal(conditioned.preference.assign(clips))
    assert alone.assigner("threshold:0")(clips).equal(torch.ones(2, 4, dtype=torch.int64))


def with_sound(path: Path, frames: np.ndarray) -> bytes:
    """A video with a track of AAC; returns the packets of the track."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        track = container.add_stream("aac", rate=16_000)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        tone = np.sin(np.arange(16_000) / 20).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(track.encode(sound))
        container.mux(track.encode())
    return packets(path)


def with_pcm(video: Path, path: Path, seconds: int) -> None:
    """Copy a video and give it a long track of uncompressed sound."""
    with av.open(str(video)) as source, av.open(str(path), "w") as container:
        picture = container.add_stream_from_template(source.streams.video[0])
        track = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                container.mux(packet)
        tone = (9000 * np.sin(np.arange(16_000) / 20)).astype(np.int16)[None]
        for second in range(seconds):
            sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            sound.sample_rate, sound.pts = 16_000, 16_000 * second
            container.mux(track.encode(sound))
        container.mux(track.encode())


def packets(path: Path) -> bytes:
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return b"".join(bytes(packet) for packet in container.demux(track))


def test_sound_is_carried_unchanged(toy: Models, square: Square, tmp_path: Path) -> None:
    sound = with_sound(tmp_path / "in.mp4", square(20, 38, 46, 0))
    assert encode_file(toy, tmp_path / "in.mp4", tmp_path / "a.evt")["sound"]
    encode_file(toy, tmp_path / "in.mp4", tmp_path / "b.evt")  # Matroska drew a random number
    assert (tmp_path / "b.evt").read_bytes() == (tmp_path / "a.evt").read_bytes()
    for name in ("b.mp4", "b.mkv"):
        assert decode_file(toy, tmp_path / "a.evt", tmp_path / name)["sound"]
        assert packets(tmp_path / name) == sound
    (row,) = reconstruct_files(toy, [tmp_path / "in.mp4"], tmp_path / "out")["files"]
    assert row["sound"] and packets(Path(row["output"])) == sound
    silent = EncodeSettings(sound=False)
    assert not encode_file(toy, tmp_path / "in.mp4", tmp_path / "s.evt", settings=silent)["sound"]


@pytest.mark.parametrize("name", ["b.gif", "b.png"])
def test_a_target_without_sound_is_told_to_have_none(
    toy: Models, square: Square, tmp_path: Path, name: str
) -> None:
    with_sound(tmp_path / "in.mp4", square(4, 32, 32, 0))
    encode_file(toy, tmp_path / "in.mp4", tmp_path / "a.evt", Rate("uniform:1"))
    told = decode_file(toy, tmp_path / "a.evt", tmp_path / name, end=0.02)
    assert told["frames"] == 1 and not told["sound"]


def sound_times(path: Path) -> list[float]:
    """When each packet of the sound begins, in seconds."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [float(p.pts * p.time_base) for p in container.demux(track) if p.pts is not None]


def test_a_part_carries_its_own_sound_at_its_own_time(
    toy: Models, square: Square, tmp_path: Path
) -> None:
    source, path = tmp_path / "in.mp4", tmp_path / "a.evt"
    whole = with_sound(source, square(40, 38, 46, 0))  # 1.6 s, with a second of sound
    part = EncodeSettings(start=0.4, end=0.72)
    assert encode_file(toy, source, path, settings=part)["sound"]
    wanted = [time for time in sound_times(source) if 0.4 - 0.064 < time < 0.72]
    for name in ("b.mkv", "b.mp4"):
        assert decode_file(toy, path, tmp_path / name)["sound"]
        assert times_of(tmp_path / name)[0] == pytest.approx(0.4)
        assert sound_times(tmp_path / name) == pytest.approx(wanted, abs=0.002)
        assert packets(tmp_path / name) in whole
    encode_file(toy, source, tmp_path / "whole.evt", Rate("uniform:1"))
    told = decode_file(toy, tmp_path / "whole.evt", tmp_path / "c.mkv", start=0.4, end=0.72)
    assert told["sound"] and sound_times(tmp_path / "c.mkv") == pytest.approx(wanted, abs=0.002)
    assert times_of(tmp_path / "c.mkv") == pytest.approx(times_of(tmp_path / "b.mkv"))
    assert not decode_file(toy, tmp_path / "whole.evt", tmp_path / "d.mp4", start=1.2)["sound"]
    late = EncodeSettings(start=1.2)
    assert not encode_file(toy, source, tmp_path / "late.evt", settings=late)["sound"]
    rows = reconstruct_files(toy, [source], tmp_path / "out", settings=part)["files"]
    assert rows[0]["sound"] and sound_times(Path(rows[0]["output"])) == pytest.approx(
        wanted, abs=0.002
    )


def test_sound_that_cannot_be_kept_names_the_file_and_the_option(
    toy: Models, square: Square, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "in.flv", tmp_path / "a.evt"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 38, 46, "yuv420p"
        track = container.add_stream("nellymoser", rate=8000, layout="mono")
        for picture in square(20, 38, 46, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        tone = np.sin(np.arange(8000) / 20).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="flt", layout="mono")
        sound.sample_rate = 8000
        container.mux(track.encode(sound))
        container.mux(track.encode())
    options = EncodeSettings(allow_damaged=True)
    with pytest.raises(VideoError, match=r"in\.flv: the sound cannot be kept .*--no-sound"):
        encode_file(toy, source, path, settings=options)
    assert not path.exists()
    assert encode_file(toy, source, path, settings=EncodeSettings(sound=False))["frames"] == 20

    with_sound(tmp_path / "in.mp4", square(20, 38, 46, 0))
    opened = av.open

    def broken(name: str, *options: Any, **named: Any) -> Any:
        if named.get("format") == "matroska":
            raise av.error.InvalidDataError(1094995529, "Invalid data found")
        return opened(name, *options, **named)

    monkeypatch.setattr("video.timed.av.open", broken)
    with pytest.raises(VideoError, match=r"in\.mp4: the sound is damaged .*--no-sound"):
        encode_file(toy, tmp_path / "in.mp4", path, settings=options)


def test_a_part_without_frames_is_refused_and_an_older_file_kept(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.evt"
    encode_file(toy, video, path)
    before, told = path.read_bytes(), r"in\.mp4: no frame comes {:g} s.* 2\.97 s"
    for start in (3.5, 100.0):
        for rate in (Rate(), Rate("best", min_psnr=1.0)):
            late = EncodeSettings(start=start)
            with pytest.raises(EvatokError, match=told.format(start)):
                encode_file(toy, video, path, rate, late)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("unit", [27_000_000, 1_000_000_000])
def test_times_of_a_finer_unit_than_a_header_holds_are_rounded(
    toy: Models, square: Square, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    """To the nearest 1/90 000 s; those that are nearer than that stay apart."""
    source = tmp_path / "in.mp4"
    write_timed(source, zip(range(0, 800, 40), square(20, 38, 46, 0), strict=True), TICK / 40)
    exact = [Fraction(n, 25) + Fraction(n * n, unit) for n in range(20)]
    exact[7] = exact[6] + Fraction(1, unit)
    monkeypatch.setattr("evatok.generate.token_file.time_base_of", lambda _: Fraction(1, unit))
    monkeypatch.setattr(
        "evatok.generate.token_file.iter_timed",
        lambda *_: zip(exact, read_frames(source).numpy(), strict=True),
    )
    encode_file(toy, source, tmp_path / "a.evt")
    with EvtReader(tmp_path / "a.evt") as reader:
        (found,) = reader.chunks()
        assert reader.header.time_base == (1, 90_000)
    rounded = [round(time * 90_000) for time in exact]
    rounded[7] = rounded[6] + 1
    assert list(found.times) == rounded


def test_damage_of_the_end_of_the_sound_is_refused_and_shown(
    toy: Models, square: Square, tmp_path: Path
) -> None:
    with_sound(tmp_path / "in.mp4", square(20, 38, 46, 0))
    encode_file(toy, tmp_path / "in.mp4", tmp_path / "a.evt")
    data = bytearray((tmp_path / "a.evt").read_bytes())
    with EvtReader(tmp_path / "a.evt") as reader:
        (piece,) = reader.sound()
        place = bytes(data).index(piece[:100])
    # two pieces instead of one, and the second one damaged
    first, second = (
        chunk_bytes(SOUND, 0, piece[:900]),
        bytearray(chunk_bytes(SOUND, 1, piece[900:])),
    )
    second[50] ^= 1
    start, stop = place - CHUNK.size, place + len(piece)
    (tmp_path / "b.evt").write_bytes(data[:start] + first + second + data[stop:])
    assert show_file(tmp_path / "b.evt")["damage"] == ["the sound is damaged at its end"]
    with pytest.raises(EvtError, match=r"b\.evt: the sound is damaged.*--allow-damaged"):
        decode_file(toy, tmp_path / "b.evt", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
    silent = decode_file(toy, tmp_path / "b.evt", tmp_path / "b.mp4", sound=False)
    assert silent["frames"] == 20 and not silent["damage"]


def test_a_name_of_another_encoding_is_written_printably(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    """JSON would take half of a surrogate pair, and not give it back."""
    source = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(video, source)
    told = encode_file(toy, source, tmp_path / "a.evt")
    assert told["source"].startswith(r"caf\udce9.mp4 ")
    with EvtReader(tmp_path / "a.evt") as reader:
        assert reader.header.source == told["source"] and len(list(reader.chunks())) == 2
    assert decode_file(toy, tmp_path / "a.evt", tmp_path / "b.mp4")["frames"] == 75


def test_another_model_is_refused_by_name_and_weights(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    encode_file(toy, video, tmp_path / "a.evt")
    with pytest.raises(EvtError, match=r"encoded with .* weights [0-9a-f]{16}.*--model"):
        decode_file(load("nano"), tmp_path / "a.evt", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_a_header_that_does_not_fit_its_model_is_refused(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    """Its checksum is right and its weights are the model's: still no error of shapes."""
    encode_file(toy, video, tmp_path / "a.evt")
    with EvtReader(tmp_path / "a.evt") as reader:
        header, rest = reader.header, (tmp_path / "a.evt").read_bytes()[reader.header_end :]
    for name, value in {"num_frames": 32, "size": 16, "codebook_size": 9, "levels": (1, 2)}.items():
        with open(tmp_path / "b.evt", "wb") as file:
            write_header(file, header.model_copy(update={name: value}))
            file.write(rest)
        with pytest.raises(EvtError, match=rf"the header tells {name} .*encode the video again"):
            decode_file(toy, tmp_path / "b.evt", tmp_path / "b.mp4", allow_damaged=True)
        assert not (tmp_path / "b.mp4").exists()


def test_damage_is_refused_or_told(toy: Models, video: Path, tmp_path: Path) -> None:
    encode_file(toy, video, tmp_path / "a.evt", settings=EncodeSettings(clips_per_chunk=1))
    with EvtReader(tmp_path / "a.evt") as reader:
        start = [start for start, _, _ in reader.whole_chunks()][2]
    data = bytearray((tmp_path / "a.evt").read_bytes())
    data[start + 30] ^= 1
    (tmp_path / "b.evt").write_bytes(data)
    with pytest.raises(EvtError, match=r"frames 32 to 47 are damaged.*--allow-damaged"):
        decode_file(toy, tmp_path / "b.evt", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
    told = decode_file(toy, tmp_path / "b.evt", tmp_path / "b.mp4", allow_damaged=True)
    assert told["frames"] == 59 and told["damage"] == ["frames 32 to 47 are damaged"]


def test_budgets_are_met(conditioned: Models, video: Path, tmp_path: Path) -> None:
    def tokens(rate: Rate) -> dict:
        return encode_file(conditioned, video, tmp_path / "x.evt", rate)

    low, high = tokens(Rate("router:0")), tokens(Rate("router:2"))
    least, most = sorted((low["tokens"], high["tokens"]))
    if most > least:
        wanted = (least + most) / 2 / 3.0
        told = tokens(Rate(tokens_per_second=wanted))
        spent = wanted * 75 / 74 * told["seconds"]
        # the last clip is cut: a block behind the last frame is paid for and not written
        assert spent - 8 <= told["tokens"] <= spent + 1
    room = (low["bytes"] + high["bytes"]) // 2 + 20
    assert room - 16 <= tokens(Rate(max_bytes=room))["bytes"] <= room
    with pytest.raises(EvatokError, match=r"max_bytes 300: this file takes \d+ at least: allow"):
        tokens(Rate(max_bytes=300))
    with pytest.raises(ValueError, match="reaches 90 dB"):
        tokens(Rate(min_psnr=90.0))
    assert tokens(Rate(min_psnr=1.0))["tokens"] == low["tokens"]


def test_bytes_are_counted_as_they_are_written(toy: Models, square: Square, tmp_path: Path) -> None:
    """Letters beyond ASCII take six bytes each in the header; pieces of sound have heads."""
    name = tmp_path / "Праздник-ホリデー-празднуем.mkv"
    write_timed(tmp_path / "in.mp4", zip(range(40), square(40, 38, 46, 0), strict=True), TICK)
    with_pcm(tmp_path / "in.mp4", name, seconds=60)
    low, high = (encode_file(toy, name, tmp_path / "x.evt", Rate(f"uniform:{n}")) for n in (1, 4))
    for part in (0.4, 0.6, 0.8):
        room = round(low["bytes"] + 40 + part * (high["bytes"] - low["bytes"]))
        told = encode_file(toy, name, tmp_path / "x.evt", Rate("best", max_bytes=room))
        assert told["sound"] and low["bytes"] < told["bytes"] <= room


@pytest.mark.parametrize("rate", [Rate(), Rate(tokens_per_second=500.0), Rate(min_psnr=1.0)])
def test_no_pass_computes_more_tiles_at_once_than_asked(
    conditioned: Models,
    square: Square,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: Rate,
) -> None:
    """Ten tiles, four clips a chunk; what is chosen does not depend on how many at once."""
    picture = square(80, 64, 150, 0)
    write_timed(tmp_path / "in.mp4", zip(range(80), picture, strict=True), TICK)
    seen: list[int] = []
    assign = ExactEncoder.assign

    def counted(self: ExactEncoder, clips: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(len(clips))
        return assign(self, clips, **options)

    def stop(_file: str, frames: int, _total: int | None) -> None:
        raise Stopped

    monkeypatch.setattr(ExactEncoder, "assign", counted)
    encode_file(conditioned, tmp_path / "in.mp4", tmp_path / "a.evt", rate)
    assert max(seen) == 32
    seen.clear()
    few = EncodeSettings(batch_size=3)
    with pytest.raises(Stopped):  # and goes on
        encode_file(conditioned, tmp_path / "in.mp4", tmp_path / "b.evt", rate, few, stop)
    encode_file(conditioned, tmp_path / "in.mp4", tmp_path / "b.evt", rate, few)
    assert max(seen) == 3
    assert (tmp_path / "a.evt").read_bytes() == (tmp_path / "b.evt").read_bytes()


class Stopped(Exception):
    """What ends an encoding in its middle."""


def test_budgets_of_the_best_assignments(toy: Models, video: Path, tmp_path: Path) -> None:
    """Every candidate of every tile is measured: exact, the same when it goes on."""

    def encode(rate: Rate, batch_size: int = 32) -> dict:
        options = EncodeSettings(clips_per_chunk=1, batch_size=batch_size)
        return encode_file(toy, video, tmp_path / "x.evt", rate, options)

    def stop(name: str, frames: int, total: int | None) -> None:
        if frames > 30:
            raise Stopped

    low, high = encode(Rate("uniform:1")), encode(Rate("uniform:4"))
    room = (3 * low["bytes"] + high["bytes"]) // 4
    told = encode(Rate("best", max_bytes=room))
    # this model is not trained: what is left over would take away no error
    assert low["bytes"] < told["bytes"] <= room
    assert told["assignment"] == f"best max_bytes:{room}"
    whole = chunks(tmp_path / "x.evt")
    encode(Rate("best", max_bytes=room), batch_size=1)
    assert chunks(tmp_path / "x.evt") == whole
    (tmp_path / "x.evt").unlink()
    with pytest.raises(Stopped):
        options = EncodeSettings(clips_per_chunk=1)
        encode_file(toy, video, tmp_path / "x.evt", Rate("best", max_bytes=room), options, stop)
    encode(Rate("best", max_bytes=room))
    assert chunks(tmp_path / "x.evt") == whole
    wanted = 1.5 * low["tokens"] / low["seconds"]
    told = encode(Rate("best", tokens_per_second=wanted))
    assert low["tokens"] < told["tokens"] <= 1.5 * low["tokens"] * 75 / 74 + 1
    assert encode(Rate("best", min_psnr=1.0))["tokens"] == low["tokens"]
    with pytest.raises(ValueError, match="reaches 90 dB"):
        encode(Rate("best", min_psnr=90.0))
    with pytest.raises(EvatokError, match=r"max_bytes 300: this file takes \d+ at least: allow"):
        encode(Rate("best", max_bytes=300))


def test_the_least_bytes_are_told_with_those_of_the_sound(
    conditioned: Models, square: Square, tmp_path: Path
) -> None:
    source, path = tmp_path / "in.mp4", tmp_path / "a.evt"
    with_sound(source, square(16, 32, 32, 0))
    with pytest.raises(EvatokError, match=r"\d+ of them for its sound: .*--no-sound") as caught:
        encode_file(conditioned, source, path, Rate(max_bytes=900))
    least, sound = map(int, re.findall(r"takes (\d+) at least, (\d+) of", str(caught.value))[0])
    assert encode_file(conditioned, source, path, Rate(max_bytes=least))["bytes"] > least - 64
    silent = EncodeSettings(sound=False)
    assert encode_file(conditioned, source, path, Rate(max_bytes=least - sound), silent)["tokens"]


def test_an_overlap_of_more_than_half_a_tile_is_refused(
    toy: Models, square: Square, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", square(4, 32, 40, 0), 25)
    with pytest.raises(EvatokError, match=r"^overlap 17: neighbouring tiles .* 0 to 16 pixels"):
        encode_file(toy, tmp_path / "a.mp4", tmp_path / "a.evt", None, EncodeSettings(overlap=17))


def test_rates_that_contradict_each_other_are_refused() -> None:
    for values in (
        {"max_bytes": 10, "min_psnr": 3.0},
        {"max_bytes": -1},
        {"min_psnr": float("nan")},
        {"tokens_per_second": 5.0, "assignment": "uniform:4"},
        {"tokens_per_second": 5.0, "assignment": "best:1.5"},
    ):
        with pytest.raises(ValueError):
            Rate(**values)  # type: ignore[arg-type]


def test_targets_of_several_files(tmp_path: Path) -> None:
    assert targets([Path("a.mp4")], tmp_path / "x.evt", ".evt") == [tmp_path / "x.evt"]
    assert targets([Path("a.mp4"), Path("b.mp4")], tmp_path, ".evt")[1] == tmp_path / "b.evt"
    with pytest.raises(ValueError, match="several files are called a"):
        targets([Path("a.mp4"), Path("d/a.avi")], tmp_path, ".evt")
    with pytest.raises(EvatokError, match=r"x\.evt: several files need a folder"):
        targets([Path("a.mp4"), Path("b.mp4")], tmp_path / "x.evt", ".evt")
    (tmp_path / "there").touch()
    for name in ("out.mp4", "out.PNG", "out.npy", "there"):
        with pytest.raises(EvatokError, match=rf"{name}: name a file that ends in \.evt, or a fol"):
            targets([Path("a.mp4")], tmp_path / name, ".evt")
    (tmp_path / "set.mp4").mkdir()
    assert targets([Path("a.mp4")], tmp_path / "set.mp4", ".evt") == [tmp_path / "set.mp4/a.evt"]


def test_commands(
    toy_dir: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, model = tmp_path / "a.evt", ["--model", str(toy_dir)]
    assert main(["encode", str(video), "-o", str(file), *model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    assert main(["decode", str(file), "-o", str(tmp_path / "b.mp4"), *model]) == 0
    assert "75 frames" in capsys.readouterr().err
    assert main(["show", str(video)]) == 2
    assert "no token file" in capsys.readouterr().err
    assert main(["decode", str(file), "-o", str(tmp_path / "b.txt"), *model]) == 2
    assert "write .mp4" in capsys.readouterr().err


def test_one_bad_file_does_not_stop_the_others(
    toy_dir: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    shutil.copy(video, tmp_path / "last.mp4")
    files = [str(video), str(tmp_path / "bad.mp4"), str(tmp_path / "last.mp4")]
    options = ["-o", str(tmp_path / "out"), "--model", str(toy_dir), "--json"]
    assert main(["encode", *files, *options]) == 2
    told = capsys.readouterr()
    result = json.loads(told.out.splitlines()[-1])
    assert [Path(row["file"]).name for row in result["files"]] == ["in.evt", "last.evt"]
    assert [row["file"] for row in result["refused"]] == [files[1]]
    assert "1 of 3 files could not be encoded: " in told.err and "bad.mp4" in told.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["in.evt", "last.evt"]
    assert main(["encode", files[1], *options]) == 2
    assert "of 1 files" not in capsys.readouterr().err


def test_a_part_without_frames_is_refused_before_a_model_is_loaded(
    toy: Models, square: Square, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", square(8, 32, 32, 0), 25)
    path, model = tmp_path / "a.evt", ["--model", str(tmp_path / "absent")]
    encode_file(toy, tmp_path / "a.mp4", path, Rate("uniform:1"))
    for options, told in (
        (["--start", "50"], "a.evt: no frame comes 50 s or later after the first: the last "),
        (["--start", "2", "--end", "1"], "from 2 to 1.0 seconds is no part of a video"),
    ):
        assert main(["decode", str(path), "-o", str(tmp_path / "b.mp4"), *options, *model]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(EvtError, match=r"no frame comes 0.05 to 0.06 s after the first"):
        decode_file(toy, path, tmp_path / "b.mp4", start=0.05, end=0.06)
    with pytest.raises(EvtError, match=r"b\.webm: write .*\.mkv, \.gif, or of one frame a picture"):
        decode_file(toy, path, tmp_path / "b.webm")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("frames", [10, 64])
def test_a_video_that_changes_its_size_is_refused(
    toy: Models, square: Square, tmp_path: Path, frames: int
) -> None:
    """In a chunk of frames and between two; a part behind the change too."""
    path, content = tmp_path / "a.h264", b""
    for side, count in ((32, frames), (48, 20)):
        with av.open(str(tmp_path / "part.h264"), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for picture in square(count, side, side, 0):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        content += (tmp_path / "part.h264").read_bytes()
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.h264: changes its size on the way; convert it"):
        encode_file(toy, path, tmp_path / "a.evt")
    with pytest.raises(VideoError, match="changes its size"):
        encode_file(toy, path, tmp_path / "b.evt", None, EncodeSettings(start=frames / 25))
    write_video(tmp_path / "good.mp4", square(16, 32, 32, 0))
    result = reconstruct_files(toy, [path, tmp_path / "good.mp4"], tmp_path / "out")
    assert [row["file"] for row in result["damaged"]] == [str(path)] and result["num_files"] == 1
    assert not (tmp_path / "a.evt").exists()


def test_a_picture_of_a_long_file_is_refused_at_its_second_frame(
    toy: Models, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_file(toy, video, tmp_path / "a.evt", settings=EncodeSettings(clips_per_chunk=1))
    seen: list[int] = []
    pictures = ChunkDecoder._pictures

    def counted(self: ChunkDecoder, tokens: Any, count: int) -> torch.Tensor:
        seen.append(count)
        return pictures(self, tokens, count)

    monkeypatch.setattr(ChunkDecoder, "_pictures", counted)
    with pytest.raises(EvtError, match="a picture holds one frame"):
        decode_file(toy, tmp_path / "a.evt", tmp_path / "a.png")
    assert len(seen) <= 2 and not (tmp_path / "a.png").exists()


def test_a_late_start_reads_from_a_key_frame_and_gives_the_same_frames(
    square: Square, tmp_path: Path
) -> None:
    """Seeking changes no frame and no time of what is wanted."""
    frames = np.concatenate([square(100, 32, 32, seed) for seed in range(4)])
    path = tmp_path / "long.mp4"
    write_timed(path, ((1000 * n, f) for n, f in enumerate(frames)), Fraction(1, 25_000))
    whole = [pair for pair in iter_timed(path) if pair[0] >= 14]
    late = list(iter_timed(path, start=14.0))
    assert len(late) < 300 and late[0][0] <= 14
    wanted = [pair for pair in late if pair[0] >= 14]
    assert [time for time, _ in wanted] == [time for time, _ in whole]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(wanted, whole, strict=True))


def test_a_token_file_is_not_written_over_its_source(toy: Models, video: Path) -> None:
    with pytest.raises(ValueError, match="written over the input"):
        encode_file(toy, video, video)


def test_progress_tells_the_pace_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace()
    for done, total in ((16, 75), (32, 75), (75, 75), (80, None)):
        pace("in.mp4", done, total)
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert first == "in.mp4: 16 frames"
    assert re.fullmatch(r"in\.mp4: 32 of 75 frames, [\d.]+ frames/s, \d:\d\d:\d\d left", second)
    assert re.fullmatch(r"in\.mp4: 75 of 75 frames, [\d.]+ frames/s", third)
    assert re.fullmatch(r"in\.mp4: 80 frames, [\d.]+ frames/s", fourth)


def test_borders_are_the_same_in_a_part_and_in_the_whole(
    toy: Models, video: Path, tmp_path: Path
) -> None:
    """From any time on; and what is damaged before it changes one border only."""
    path = tmp_path / "a.evt"
    encode_file(toy, video, path, Rate("uniform:2"), EncodeSettings(clips_per_chunk=2))

    def frames(start: float = 0.0, smooth: bool = True, name: str = "a.evt") -> np.ndarray:
        with EvtReader(tmp_path / name) as reader:
            decoder = ChunkDecoder(reader.header, toy.final.eval())
            made = _decoded(reader, decoder, start, None, True, None, False, smooth)
            return np.stack([picture for _, picture in made])

    whole, plain = frames(), frames(smooth=False)
    changed = [
        n for n, pair in enumerate(zip(whole, plain, strict=True)) if (pair[0] != pair[1]).any()
    ]
    assert changed and all(min(n % 16, 15 - n % 16) < 4 for n in changed)
    times = times_of(video)
    for first in (31, 32, 33, 50, 64):
        assert np.array_equal(frames(float(times[first] - times[0])), whole[first:])
    with EvtReader(path) as reader:
        begin = next(start for start, _, _ in reader.whole_chunks())
    data = bytearray(path.read_bytes())
    data[begin + 30] ^= 1
    (tmp_path / "b.evt").write_bytes(data)
    part = frames(float(times[32] - times[0]), name="b.evt")
    assert np.array_equal(part[4:], whole[36:]) and np.array_equal(part[:4], plain[32:36])
