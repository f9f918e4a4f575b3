"""Clips drawn from folders of anyone's videos, and their scores."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.encoders.base import legacy_resize
from evaluation.scoring import clips as clips_module
from evaluation.scoring import readers as readers_module
from evaluation.scoring.clips import Cut, VideoClips
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.presets import PRESETS, preset
from evaluation.scoring.readers import Video
from evaluation.scoring.score import score_folders
from evatok.cli.app import main
from tests.evaluation.scoring.films import film
from video.clips import Resizing, Size, sides
from video.decoding.stills import read_picture


class Means:
    """A network that anyone can compute: the mean of each channel in each half of the frames."""

    name, dim, checksum = "means", 6, "sum"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, clips: Tensor) -> Tensor:
        self.seen += len(clips)
        return torch.cat([half.mean((2, 3, 4)) for half in clips.tensor_split(2, dim=2)], 1)


def clips_of(path: Path, **cut: object) -> VideoClips:
    return VideoClips(path, Cut.model_validate({"num_frames": 4, "size": 32} | cut))


CUT = Cut(num_frames=4, size=32, window="all")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five videos of several sizes and lengths, in subfolders; one is no video at all."""
    film(tmp_path / "b.mp4", 1, 9)
    film(tmp_path / "a.mp4", 2, 13, height=64, width=48)
    film(tmp_path / "more" / "c.mp4", 3, 3)
    film(tmp_path / "more" / "d.MP4", 4, 4)
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    (tmp_path / "notes.txt").write_text("no video either")
    return tmp_path


def test_folder_reads_mixed_videos(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = clips_of(folder)
    with caplog.at_level(logging.WARNING):
        read = list(found)
    names = [video.name for video in found.videos]
    assert names == ["a.mp4", "b.mp4", "broken.mp4", "more/c.mp4", "more/d.MP4"]
    assert [clip.shape for clip in read] == [(3, 4, 32, 32)] * 4
    assert all(clip.dtype == torch.float32 and clip.abs().max() <= 1 for clip in read)
    assert list(found.damaged) == ["broken.mp4"] and "broken.mp4" in caplog.text
    assert found.padded == ["more/c.mp4"]
    assert torch.equal(read[2][:, 3], read[2][:, 2])  # the last frame again
    assert not torch.equal(read[2][:, 2], read[2][:, 1])
    assert len(list(found)) == 4 and list(found.damaged) == ["broken.mp4"]  # not counted twice


def test_windows(folder: Path) -> None:
    whole = list(clips_of(folder, window="all"))
    assert len(whole) == 3 + 2 + 1 + 1
    first = list(clips_of(folder, window="first"))
    assert torch.equal(whole[0], first[0]) and torch.equal(whole[3], first[1])
    drawn = [list(clips_of(folder, window="random", seed=seed)) for seed in (1, 1, 2, 3)]
    assert all(torch.equal(x, y) for x, y in zip(drawn[0], drawn[1], strict=True))
    assert any(not torch.equal(drawn[0][0], other[0]) for other in drawn[2:])
    assert torch.equal(drawn[0][3], first[3])  # four frames: there is only one window
    frames = torch.cat(list(clips_of(folder, num_frames=1, window="all")), 1)[:, :13]
    starts = [s for s in range(10) if torch.equal(frames[:, s : s + 4], drawn[0][0])]
    assert len(starts) == 1
    two = list(clips_of(folder, window=2))  # of the first video two of three
    assert len(two) == 2 + 2 + 1 + 1 and torch.equal(two[2], whole[3])
    assert sum(torch.equal(clip, other) for clip in two[:2] for other in whole[:3]) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, clips_of(folder, window=3), strict=True))


def test_folders_are_scored(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "more", copy)
    result = score_folders(folder, copy, [Means()], cut=CUT)
    assert result["num_real"] == 9 and result["num_fake"] == 2  # the copy lies in the folder
    assert result["num_files_real"] == 7 and result["num_files_fake"] == 2
    assert list(result["damaged_real"]) == ["broken.mp4"] and result["damaged_fake"] == {}
    assert result["padded_fake"] == ["c.mp4"]
    assert result["cut"]["window"] == "all" and result["cut"]["seed"] == 42
    assert result["fvd[means]"] > 0 and result["size"] == [32, 32]
    assert json.loads(json.dumps(result)) == result


def test_folder_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
        VideoClips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no videos under"):
        VideoClips(tmp_path)
    film(tmp_path / "a.mp4", 1, 4)
    with pytest.raises(ValueError, match="num_frames"):
        Cut(num_frames=0)
    with pytest.raises(ValueError, match="window"):
        clips_of(tmp_path, window="last")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="the real side has 0 clips"):
        score_folders(tmp_path, tmp_path, [Means()])


def test_real_and_awkward_files(assets: Path, tmp_path: Path) -> None:
    """Awkward files give clips; damaged ones and cover pictures none, however few frames count."""
    for path in (assets / "odd").iterdir():
        (tmp_path / path.name).symlink_to(path)
    shutil.copy(tmp_path / "cover.m4a", tmp_path / "cover.mp4")
    for window in ("first", "all"):
        odd = clips_of(tmp_path, size=16, window=window)
        clips = list(odd)
        damaged = {name: reason.partition(": ")[2] for name, reason in odd.damaged.items()}
        assert damaged == {
            "cover.mp4": "has no video stream, a cover picture only",
            "dmg.webm": "damaged: 30 of 40 frames (a hole in the file)",
            "trunc.avi": "damaged: 25 of 40 frames (the file ends early, 1 only in part)",
            "trunc_fast.mp4":
                "damaged: 20 of 40 frames (the file ends early, 1 could not be decoded)",
        }  # fmt: skip
        assert len(clips) == 7 if window == "first" else len(clips) > 40


def test_a_second_run_makes_nothing(folder: Path, tmp_path: Path) -> None:
    """The same result from the cache, wherever the files are; other settings are other features."""
    copy = tmp_path / "copy"
    shutil.copytree(folder / "more", copy)
    cache, network = FeatureCache(tmp_path / "features.sqlite"), Means()
    plain = score_folders(folder, copy, [Means()], cut=CUT)
    first = score_folders(folder, copy, [network], cut=CUT, cache=cache)
    made = network.seen
    assert first == plain and made == 7  # what the copy repeats is known by its content
    shutil.move(copy, tmp_path / "moved")
    cache = FeatureCache(tmp_path / "features.sqlite")
    again = score_folders(folder, tmp_path / "moved", [network], cut=CUT, cache=cache)
    assert network.seen == made
    assert again["fvd[means]"] == first["fvd[means]"] and again["num_fake"] == first["num_fake"]
    assert again["padded_real"][-1:] == first["padded_fake"] or again["padded_fake"] == ["c.mp4"]
    other = CUT.model_copy(update={"size": 16})
    score_folders(folder, tmp_path / "moved", [network], cut=other, cache=cache)
    assert network.seen == 2 * made


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """Broken off in the middle: what was made is not made again, and the result is the same."""

    class Breaks(Means):
        def __call__(self, clips: Tensor) -> Tensor:
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().__call__(clips)

    cache = FeatureCache(tmp_path / "features.sqlite")
    with pytest.raises(KeyboardInterrupt):
        score_folders(folder, folder, [Breaks()], cut=CUT, cache=cache, batch_size=2)
    network = Means()
    got = score_folders(folder, folder, [network], cut=CUT, cache=cache, batch_size=2)
    assert network.seen == 7 - 4
    assert got == score_folders(folder, folder, [Means()], cut=CUT, batch_size=2)


def test_damaged_values_are_computed_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "features.sqlite"
    right = score_folders(folder, folder, [Means()], cut=CUT, cache=FeatureCache(path))
    statements = (
        "UPDATE features SET vector = zeroblob(length(vector))",
        "UPDATE features SET vector = 'text'",
        "UPDATE features SET vector = NULL",
        "UPDATE features SET vector = substr(vector, 2)",
        "UPDATE checked_notes SET value = '3'",
        "UPDATE checked_notes SET value = '{'",
        "UPDATE checked_notes SET value = x'ff00'",
    )
    for statement in statements:
        caplog.clear()
        with closing(sqlite3.connect(path)) as file, file:
            assert file.execute(statement).rowcount > 0
        cache = FeatureCache(path)
        assert score_folders(folder, folder, [Means()], cut=CUT, cache=cache) == right
        assert caplog.text.count("damaged values: they are computed again") == 1
        network = Means()
        score_folders(folder, folder, [network], cut=CUT, cache=FeatureCache(path))
        assert network.seen == 0


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_the_cache_is_closed(folder: Path, tmp_path: Path) -> None:
    """By the command, whether it succeeds, and where the file is no cache."""
    path = tmp_path / "features.sqlite"
    words = ["fvd", str(folder), str(folder / "more"), "--cache", str(path), "--frames", "9"]
    for more, status in ((["--size", "64"], 0), (["--count", "999"], 2)):
        assert main([*words, *more]) == status
        assert not list(tmp_path.glob("features.sqlite-*"))  # the last to leave clears up
    path.write_bytes(b"no database at all, but long enough" * 40)
    assert main(words) == 2
    gc.collect()  # an open connection would warn here


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "features.sqlite").write_bytes(b"no database at all, but long enough" * 40)
    with pytest.raises(ValueError, match=r"features.sqlite is damaged .*remove it"):
        FeatureCache(tmp_path / "features.sqlite")


def test_drawn_windows_are_those_of_the_papers(folder: Path) -> None:
    """`random.Random(42).sample` over all windows, in the order of the videos."""
    import random

    every = list(clips_of(folder, window="all"))
    drawn = list(clips_of(folder, window="all", count=3))
    chosen = sorted(random.Random(42).sample(range(7), 3))
    assert len(drawn) == 3
    assert {i for i in range(7) for clip in drawn if torch.equal(every[i], clip)} == set(chosen)
    with pytest.raises(ValueError, match=r"has 7 clips, not 9: give --count 7"):
        list(clips_of(folder, window="all", count=9))
    assert all(p.cut.num_frames == 16 and p.cut.size == 128 for p in PRESETS.values())
    assert preset("larp-k600").cut.shrink == 64
    with pytest.raises(ValueError, match="no preset 'larp'; there are larp-ucf"):
        preset("larp")


def test_shrinking(folder: Path) -> None:
    """First to another side: antialiased, or corner to corner as TensorFlow 1 did."""
    (small,) = list(clips_of(folder / "more" / "d.MP4", shrink=16))
    assert small.shape == (3, 4, 16, 16)
    row = torch.arange(6.0).expand(1, 3, 1, 6, 6)
    got = legacy_resize(row, 4)[0, 0, 0]
    assert torch.equal(got[0], torch.tensor([0.0, 1.5, 3.0, 4.5]))
    assert torch.equal(legacy_resize(row, 6), row)
    grown = legacy_resize(row, 12)[0, 0, 0, 0]
    assert torch.equal(grown, torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5]))


def pixels(seed: int, frames: int = 6) -> list[Image.Image]:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in noise]


def test_what_a_folder_holds(tmp_path: Path) -> None:
    """The same with and without a cache: links, a system's notes, animations, streams, frames."""
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    film(root / "a" / "one.mp4", 1, 6)
    film(elsewhere / "two.mp4", 2, 6)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)  # a loop
    (root / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    (root / "a" / "._one.mp4").write_bytes(b"notes of a system")
    for suffix in ("ts", "h264"):
        with av.open(str(root / f"s.{suffix}"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            for picture in pixels(3):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())
    for number in range(2):
        first, *rest = pixels(4 + number)
        first.save(root / f"w{number}.webp", save_all=True, append_images=rest, lossless=True)
    frames = root / "x.avi"  # a folder of frames, whatever it is called
    frames.mkdir()
    for number, picture in enumerate(pixels(6)):
        picture.save(frames / f"{number}.png")
        (frames / f"._{number}.png").write_bytes(b"notes of a system")
    for cache in (None, FeatureCache(tmp_path / "features.sqlite")):
        found = clips_of(root)
        clips = [item.clip for item in found.walk(lambda key: True, cache)]
        names = [video.name for video in found.videos]
        assert names == [
            "a/one.mp4", "gone.mp4", "linked/two.mp4", "s.h264", "s.ts", "w0.webp", "w1.webp",
            "x.avi",
        ]  # fmt: skip
        assert len(clips) == 7 and list(found.damaged) == ["gone.mp4"]
        assert found.fingerprint()


def test_an_input_that_is_one_folder_of_frames(tmp_path: Path) -> None:
    folder = tmp_path / "holiday.frames"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(folder / f"{number}.png")
    assert [video.name for video in clips_of(folder).videos] == ["holiday.frames"]
    walked = list(clips_of(folder, window="all").walk(lambda _key: True, None))
    assert [item.name for item in walked] == ["holiday#0", "holiday#4"]


def test_pictures_of_many_kinds(tmp_path: Path) -> None:
    """Sixteen bits, transparency and EXIF's orientation."""
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16.png")
    got = read_picture(tmp_path / "16.png")
    assert np.abs(got.astype(int) - np.rint(grey / 257).astype(int)[..., None]).max() <= 1
    hidden = np.full((8, 8, 4), (255, 0, 255, 0), np.uint8)
    hidden[:, :4] = (200, 100, 50, 255)
    Image.fromarray(hidden).save(tmp_path / "alpha.png")
    got = read_picture(tmp_path / "alpha.png")
    assert not got[:, 4:].any() and (got[:, :4] == (200, 100, 50)).all()
    turned = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4).repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(
        read_picture(tmp_path / "turned.png")[..., 0], np.rot90(np.asarray(turned), -1)
    )


def test_videos_are_read_ahead_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first clip is looked at the next are decoded; nothing after the walk is closed."""
    read: list[int] = []

    def reader(number: int) -> Callable[[int | None, Size, Resizing], Tensor]:
        def frames(count: int | None, size: Size, resizing: Resizing) -> Tensor:
            read.append(number)
            return torch.full((4, *sides(size), 3), number, dtype=torch.uint8)

        return frames

    videos = [Video(f"{n:02d}.mp4", reader(n), lambda most: 4, lambda: "") for n in range(60)]
    monkeypatch.setattr(clips_module, "find_videos", lambda path: videos)
    walk = clips_of(Path("x")).walk(lambda key: True, None)
    assert next(walk).name == "00#0"
    deadline = time.monotonic() + 60
    while len(read) < clips_module.AHEAD + 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert next(walk).name == "01#0"
    assert isinstance(walk, Generator)
    walk.close()
    assert len(read) <= clips_module.AHEAD + 2
    names = [item.name for item in clips_of(Path("x")).walk(lambda key: True, None)]
    assert names == [f"{n:02d}#0" for n in range(60)]


def test_a_draw_decodes_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers tell how long videos are; one that does not is decoded to be counted."""
    root = tmp_path / "set"
    for number in range(8):
        film(root / f"{number}.mp4", number, 8)
    pictures, *rest = pixels(3, 8)
    pictures.save(root / "w.webp", save_all=True, append_images=rest, lossless=True)
    np.savez(root / "x.npz", x=np.zeros((2, 9, 16, 16, 3), np.uint8))
    read: list[str] = []
    counted: list[str] = []
    decode, frames = readers_module.read_frames, readers_module.iter_frames

    def read_frames(path: Path, *more: Any, **options: Any) -> Tensor:
        read.append(path.name)
        return decode(path, *more, **options)

    def iter_frames(path: Path) -> Iterator[np.ndarray]:
        counted.append(path.name)
        return frames(path)

    cut = {"window": "all", "num_frames": 4, "count": 5}
    every = {item.name for item in clips_of(root, window="all").walk(lambda key: True, None)}
    assert len(every) == 22
    monkeypatch.setattr(readers_module, "read_frames", read_frames)
    monkeypatch.setattr(readers_module, "iter_frames", iter_frames)
    drawn = [item.name for item in clips_of(root, **cut).walk(lambda key: True, None)]
    files = {name.split("#")[0] + ".mp4" for name in drawn if name[0].isdigit()}
    assert len(drawn) == 5 and set(drawn) <= every
    assert sorted(read) == sorted(files) and counted == ["w.webp"]
    with FeatureCache(tmp_path / "features.sqlite") as cache:  # which remembers the counts
        for _ in range(2):
            walk = clips_of(root, **cut).walk(lambda key: False, cache)
            assert [item.name for item in walk] == drawn
    assert sorted(read) == sorted(files) and counted == ["w.webp"] * 2


def test_short_videos_of_a_draw_are_told_again(folder: Path, tmp_path: Path) -> None:
    """Also when all of their features lie in the cache."""
    cut = CUT.model_copy(update={"num_frames": 9, "count": 4})
    cache = FeatureCache(tmp_path / "features.sqlite")
    first, again = (
        score_folders(folder, folder, [Means()], cut=cut, cache=cache) for _ in range(2)
    )
    assert first == again and first["padded_real"] == ["more/c.mp4", "more/d.MP4"]


def test_a_drawn_video_that_cannot_be_decoded(tmp_path: Path) -> None:
    """Its container counted it: the clip is lost and told, and no other takes its place."""
    film(tmp_path / "a.mp4", 1, 8)
    torn = bytearray((tmp_path / "a.mp4").read_bytes())
    end = torn.index(b"moov") - 4
    torn[end - 300 : end] = bytes(300)  # of the last frames
    (tmp_path / "b.mp4").write_bytes(bytes(torn))
    clips = clips_of(tmp_path, window="all", count=4)
    assert [item.name for item in clips.walk(lambda key: True, None)] == ["a#0", "a#4"]
    assert list(clips.damaged) == ["b.mp4"]


def test_order_of_a_draw(tmp_path: Path) -> None:
    """By path as lists name it, or by file name where a list knows no folder of a class."""
    names = ("Basketball/v_b.mp4", "BasketballDunk/v_a.mp4", "a/z.mp4", "b/m.mp4")
    for number, name in enumerate(names):
        film(tmp_path / name, number, 4)
    found = clips_of(tmp_path).videos
    assert tuple(video.name for video in found) == names  # "/" comes before letters
    found = clips_of(tmp_path, order="name").videos
    assert [video.name[-5] for video in found] == ["m", "a", "b", "z"]
    assert preset("larp-k600").cut.order == preset("magvit-k600").cut.order == "name"
    assert preset("larp-ucf").cut.order == "path"


def test_presets_of_one_split_refuse_a_folder_of_both(tmp_path: Path) -> None:
    both = preset("larp-ucf")
    both.check(tmp_path)
    for name in ("trainlist01.txt", "testlist01.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"draws from one: give .*trainlist01\.txt"):
        both.check(tmp_path)
    both.check(tmp_path / "trainlist01.txt")
    preset("tats-2048").check(tmp_path)


@pytest.mark.parametrize("window", ["first", "random", "all"])
def test_short_videos_are_left_out(folder: Path, tmp_path: Path, window: str) -> None:
    """And told, with a draw or without, from a cache as from the files."""
    short = ["more/c.mp4", "more/d.MP4"]
    for count in (None, 2):
        with FeatureCache(tmp_path / f"{window}{count}.sqlite") as cache:
            for used in (None, cache, cache):
                clips = clips_of(folder, num_frames=9, short="skip", window=window, count=count)
                names = [item.name for item in clips.walk(lambda key: True, used)]
                assert [name[0] for name in names] == ["a", "b"]
                clips.exchange()
                assert clips.short == short and not clips.padded
    with pytest.raises(ValueError, match="has 2 clips, not 3"):
        list(clips_of(folder, num_frames=9, short="skip", window=window, count=3))
    cut = CUT.model_copy(update={"num_frames": 9, "short": "skip"})
    result = score_folders(folder, folder, [Means()], cut=cut)
    assert result["short_real"] == short and result["cut"]["short"] == "skip"
    assert {p for p, kept in PRESETS.items() if kept.cut.short == "skip"} == {
        "larp-ucf", "larp-k600", "styleganv-2048"
    }  # fmt: skip


def test_resizing_of_larp(tmp_path: Path) -> None:
    """The longer side cut off to whole pixels, floats that are never rounded, centre cropped."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=noise)
    (clip,) = list(clips_of(tmp_path / "x.npz", num_frames=2, resize="float"))
    pictures = torch.from_numpy(noise).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(
        pictures, (32, 42), mode="bilinear", align_corners=False, antialias=True
    )  # 32 · 80 / 60 = 42.67
    assert torch.equal(clip, (resized[:, :, :, 5:37] * 2 - 1).transpose(0, 1))
    (ours,) = list(clips_of(tmp_path / "x.npz", num_frames=2))
    as_bytes = (ours + 1) * 127.5
    assert torch.allclose(as_bytes, as_bytes.round(), atol=1e-4)  # as it was
    assert 0.01 < float((ours - clip).abs().mean()) < 0.3
    keys = [
        next(iter(clips_of(tmp_path / "x.npz", resize=way).walk(lambda key: True, None))).key
        for way in ("bytes", "float")
    ]
    assert keys[0] != keys[1] and "float" not in keys[0]
    prints = {clips_of(tmp_path / "x.npz", resize=way).fingerprint() for way in ("bytes", "float")}
    assert len(prints) == 2
    assert Cut(resize="float").model_dump()["resize"] == "float"
    assert "resize" not in Cut().model_dump() and "order" not in Cut().model_dump()
    for name in ("larp-ucf", "larp-k600"):
        assert preset(name).cut.resize == "float"


def test_floats_are_not_rounded_where_floats_are_scored(tmp_path: Path) -> None:
    clips = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    torch.save(clips, tmp_path / "made.pt")
    got = list(clips_of(tmp_path / "made.pt", size=16, resize="float"))
    assert torch.allclose(torch.stack(got), clips, atol=1e-6)
    torch.save(clips + 1e-4 * (clips < 0), tmp_path / "near.pt")  # the same bytes, other floats
    digests = {clips_of(tmp_path / f"{n}.pt").videos[0].digest() for n in ("made", "near")}
    assert len(digests) == 2
