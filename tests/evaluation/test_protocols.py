"""Scoring of clips and folders."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.frechet import frechet_distance
from evaluation.protocols import clips_from_folder, score_clips, score_folders
from video.io import write_video


class Means:
    """A network that anyone can compute: the mean of each channel in each half of the frames."""

    def __init__(self, name: str = "means", scale: float = 1.0) -> None:
        self.name, self.dim, self.checksum, self.scale = name, 6, f"sum-{scale}", scale
        self.batches: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        halves = clips.tensor_split(2, dim=2)
        return torch.cat([half.mean((2, 3, 4)) for half in halves], 1) * self.scale


def clips(seed: int, count: int = 12, frames: int = 4, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shade = torch.rand(count, 3, frames, 1, 1, generator=generator) * 2 - 1
    return shade.expand(-1, -1, -1, size, size).clone()


def test_result_says_how_it_was_made() -> None:
    real, fake = clips(1), clips(2, count=9) * 0.8
    one, ten = Means("one"), Means("ten", 10.0)
    seen: list[tuple[str, int]] = []
    result = score_clips(
        real, fake, [one, ten], batch_size=5, progress=lambda side, done: seen.append((side, done))
    )
    expected = frechet_distance(Means()(real), Means()(fake))
    assert result["fvd[one]"] == expected
    assert result["fvd[ten]"] == pytest.approx(100 * expected, rel=1e-5)
    assert {key: value for key, value in result.items() if not key.startswith("fvd")} == {
        "num_real": 12,
        "num_fake": 9,
        "num_frames": 4,
        "size": [8, 8],
        "biased": True,
        "networks": {"one": "sum-1.0", "ten": "sum-10.0"},
    }
    assert one.batches == ten.batches == [5, 5, 2, 5, 4]
    assert seen == [("real", 5), ("real", 10), ("real", 12), ("fake", 5), ("fake", 9)]
    assert json.loads(json.dumps(result)) == result


def test_how_clips_come_does_not_matter() -> None:
    """One tensor, a generator of clips, batches of any size: the same number."""
    real, fake = clips(1), clips(2)

    def one_by_one() -> Iterator[Tensor]:
        yield from real

    whole = score_clips(real, fake, [Means()], biased=False)
    parts = score_clips(one_by_one(), fake.split(5), [Means()], biased=False, batch_size=7)
    assert parts["fvd[means]"] == pytest.approx(whole["fvd[means]"], rel=1e-6)
    assert whole["fvd[means]"] == frechet_distance(Means()(real), Means()(fake), biased=False)
    assert whole["biased"] is False
    assert score_clips(real, real.flip(0), [Means()])["fvd[means]"] == pytest.approx(0, abs=1e-9)


def test_refusals() -> None:
    x, network = clips(1), Means()
    with pytest.raises(ValueError, match="no feature network"):
        score_clips(x, x, [])
    with pytest.raises(ValueError, match="the fake side has 1 clips"):
        score_clips(x, x[:1], [network])
    with pytest.raises(ValueError, match=r"several shapes.*\(3, 4, 8, 8\), \(3, 4, 9, 9\)"):
        score_clips(x, clips(1, size=9), [network])
    with pytest.raises(ValueError, match=r"not \(4, 3, 8, 8\)"):
        score_clips(x.transpose(1, 2), x, [network])
    wrong = x.clone()
    wrong[7] = (wrong[7] + 1) * 127.5
    with pytest.raises(ValueError, match="clip 7 of the fake side reaches from"):
        score_clips(x, wrong, [network], batch_size=5)
    wrong[7] = torch.nan
    with pytest.raises(ValueError, match="clip 7 of the real side"):
        score_clips(wrong, x, [network])


def film(path: Path, seed: int, frames: int, height: int = 48, width: int = 64) -> None:
    """A video of noise that drifts, so that each of its windows differs."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (1, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    drift = np.arange(frames).reshape(-1, 1, 1, 1) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (base + drift).clip(0, 255).astype(np.uint8), fps=10)


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
    found = clips_from_folder(folder, num_frames=4, size=32)
    with caplog.at_level(logging.WARNING):
        read = list(found)
    names = [path.relative_to(folder).as_posix() for path in found.files]
    assert names == ["a.mp4", "b.mp4", "broken.mp4", "more/c.mp4", "more/d.MP4"]
    assert [clip.shape for clip in read] == [(3, 4, 32, 32)] * 4
    assert all(clip.dtype == torch.float32 and clip.abs().max() <= 1 for clip in read)
    assert list(found.damaged) == ["broken.mp4"] and "broken.mp4" in caplog.text
    assert found.padded == ["more/c.mp4"]
    assert torch.equal(read[2][:, 3], read[2][:, 2])  # the last frame again
    assert not torch.equal(read[2][:, 2], read[2][:, 1])
    assert len(list(found)) == 4 and list(found.damaged) == ["broken.mp4"]  # not counted twice


def test_windows(folder: Path) -> None:
    whole = list(clips_from_folder(folder, 4, 32, "all"))
    assert len(whole) == 3 + 2 + 1 + 1
    first = list(clips_from_folder(folder, 4, 32, "first"))
    assert torch.equal(whole[0], first[0]) and torch.equal(whole[3], first[1])
    drawn = [list(clips_from_folder(folder, 4, 32, "random", seed)) for seed in (1, 1, 2, 3)]
    assert all(torch.equal(x, y) for x, y in zip(drawn[0], drawn[1], strict=True))
    assert any(not torch.equal(drawn[0][0], other[0]) for other in drawn[2:])
    assert torch.equal(drawn[0][3], first[3])  # four frames: there is only one window
    frames = torch.cat(list(clips_from_folder(folder, 1, 32, "all")), 1)[:, :13]
    starts = [s for s in range(10) if torch.equal(frames[:, s : s + 4], drawn[0][0])]
    assert len(starts) == 1


def test_folders_are_scored(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "more", copy)
    result = score_folders(folder, copy, [Means()], num_frames=4, size=32, window="all")
    assert result["num_real"] == 9 and result["num_fake"] == 2  # the copy lies in the folder
    assert result["num_files_real"] == 7 and result["num_files_fake"] == 2
    assert list(result["damaged_real"]) == ["broken.mp4"] and result["damaged_fake"] == {}
    assert result["padded_fake"] == ["c.mp4"]
    assert result["window"] == "all" and result["seed"] == 42 and result["fvd[means]"] > 0
    assert json.loads(json.dumps(result)) == result


def test_folder_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        clips_from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no videos under"):
        clips_from_folder(tmp_path)
    film(tmp_path / "a.mp4", 1, 4)
    with pytest.raises(ValueError, match="window 'last'"):
        clips_from_folder(tmp_path, window="last")  # type: ignore[arg-type]
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="the real side has 0 clips"):
        score_folders(tmp_path, tmp_path, [Means()])


def test_real_and_awkward_files(shared: Path, tmp_path: Path) -> None:
    """Ten-bit, rotated and disordered files give clips; one that breaks half-way gives none."""
    for name in ("h264_10bits.mp4", "video_90.mov", "unordered.mov", "corrupted.mp4"):
        (tmp_path / name).symlink_to(shared / "data" / "odd" / name)
    odd = clips_from_folder(tmp_path, num_frames=4, size=16, window="all")
    assert len(list(odd)) >= 3 and odd.padded == ["video_90.mov"]  # three frames
    assert list(odd.damaged) == ["corrupted.mp4"] and "damaged" in odd.damaged["corrupted.mp4"]
    start = clips_from_folder(tmp_path, num_frames=4, size=16, window="first")
    assert len(list(start)) == 4  # its first frames are whole
