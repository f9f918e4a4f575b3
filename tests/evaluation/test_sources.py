"""Clips drawn from folders of anyone's videos, and their scores."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.feature_cache import FeatureCache
from evaluation.presets import PRESETS, preset
from evaluation.protocols import score_folders
from evaluation.sources import Cut, VideoClips, legacy_resize
from video.io import write_video


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


def film(path: Path, seed: int, frames: int, height: int = 48, width: int = 64) -> None:
    """A video of noise that drifts, so that each of its windows differs."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (1, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    drift = np.arange(frames).reshape(-1, 1, 1, 1) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (base + drift).clip(0, 255).astype(np.uint8), fps=10)


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
    with pytest.raises(ValueError, match="window"):
        clips_of(tmp_path, window="last")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="the real side has 0 clips"):
        score_folders(tmp_path, tmp_path, [Means()])


def test_real_and_awkward_files(shared: Path, tmp_path: Path) -> None:
    """Ten-bit, rotated and disordered files give clips; one that breaks half-way gives none."""
    for name in ("h264_10bits.mp4", "video_90.mov", "unordered.mov", "corrupted.mp4"):
        (tmp_path / name).symlink_to(shared / "data" / "odd" / name)
    odd = clips_of(tmp_path, size=16, window="all")
    assert len(list(odd)) >= 3 and odd.padded == ["video_90.mov"]  # three frames
    assert list(odd.damaged) == ["corrupted.mp4"] and "damaged" in odd.damaged["corrupted.mp4"]
    start = clips_of(tmp_path, size=16, window="first")
    assert len(list(start)) == 4  # its first frames are whole


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
