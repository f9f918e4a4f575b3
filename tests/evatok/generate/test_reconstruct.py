"""Videos of any length and size through the tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.encoders.nano import NanoFeatures
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.quality import flicker, mean_where_moving, moving_psnr, psnr, ssim
from evatok.generate.decoding import decode_file
from evatok.generate.reconstruct import reconstruct_files, require_all_read
from evatok.generate.token_file import EncodeSettings, encode_file
from evatok.generate.token_rate import Rate
from evatok.hub import Models
from video.clips import resize_crop, to_clip
from video.decoding.container import VideoError
from video.reading import frame_times, probe, read_frames
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]


CROP = EncodeSettings(fit="crop", sound=False)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 32, 32), (16, 34, 50), (37, 120, 46), (260, 32, 32)]
)
def test_any_length_and_size(
    toy: Models, square: Square, tmp_path: Path, frames: int, height: int, width: int
) -> None:
    path = tmp_path / "in.mp4"
    write_video(path, square(frames, height, width, 0), 12)
    told: list[int] = []
    result = reconstruct_files(
        toy, [path], tmp_path / "out", progress=lambda _name, done, _all: told.append(done)
    )
    row = result["files"][0]
    assert row["frames"] == frames and row["size"] == [width, height] and told[-1] == frames
    assert [clip["start"] for clip in row["clips"]] == list(range(0, frames, 16))
    assert row["clips"][-1]["end"] == frames
    assert (result["flicker"] is None) == (frames == 1)
    assert row["coded"] == [width, height] and row["tiles"] == (
        10 if height == 120 else 4 if height == 34 else 1
    )
    for clip in row["clips"]:
        assert len(clip["assignment"]) == -(-(clip["end"] - clip["start"]) // 4)
        assert all(row["tiles"] <= block <= 4 * row["tiles"] for block in clip["assignment"])
        assert clip["tokens"] == sum(clip["assignment"])
    assert result["tokens"] == sum(clip["tokens"] for clip in row["clips"])
    out = read_frames(row["output"])
    assert len(out) == frames and max(out.shape[1:3]) > 250
    assert frames == 1 or probe(row["output"]).fps == pytest.approx(12)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["in.mp4"]


def test_numbers_are_those_of_the_frames(toy: Models, square: Square, tmp_path: Path) -> None:
    """PSNR, FVD and the plain file, worked out again from the tokenizer alone."""
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.mp4")
        write_video(paths[-1], square(32, 40, 40, seed), 10)
    network = NanoFeatures(toy.features)
    result = reconstruct_files(
        toy,
        paths,
        tmp_path / "out",
        Rate("4,2,1,1"),
        CROP,
        networks=[network],
        plain=True,
        smooth=False,
    )
    real, fake = [], []
    for path in paths:
        frames = resize_crop(read_frames(path), 32)
        for part in frames.split(16):
            clip = to_clip(part)[None]
            tokens = toy.final.encode(clip, torch.tensor([[4, 2, 1, 1]]))
            out = toy.final.decode(tokens).clamp(-1, 1)
            real.append(clip)
            fake.append(((out + 1) * 127.5).round() / 127.5 - 1)
    expected = psnr(torch.cat(fake), torch.cat(real))
    got = [clip["psnr"] for row in result["files"] for clip in row["clips"]]
    assert got == pytest.approx(expected.tolist(), abs=1e-3)
    assert result["psnr"] == pytest.approx(float(expected.mean()), abs=1e-3)
    x, y = torch.cat(fake), torch.cat(real)
    pooled = -10 * math.log10(float(((x - y) / 2).square().mean()))
    assert result["psnr_pooled"] == pytest.approx(pooled, abs=1e-3)
    assert result["flicker"] == pytest.approx(float(flicker(x, y).mean()), abs=1e-6)
    moved = mean_where_moving(moving_psnr(x, y))
    assert moved is not None and result["moving_psnr"] == pytest.approx(moved, abs=1e-3)
    assert result["ssim"] == pytest.approx(float(ssim(x, y).mean()), abs=1e-4)
    # 6 clips of 8 tokens of a codebook of K, in 4 blocks of one of 3 lengths
    bits = 48 * math.log2(toy.final.config.codebook_size) + 24 * math.log2(3)
    assert result["bits_per_pixel"] == pytest.approx(bits / (6 * 16 * 32 * 32))
    assert 0 < result["codebook_use"] <= 1 <= result["perplexity"]
    assert result["tokens_per_clip"] == 8
    distance = frechet_distance(network(torch.cat(real)), network(torch.cat(fake)))
    assert result["fvd[nano]"] == pytest.approx(distance, rel=1e-3)
    assert tuple(read_frames(result["files"][0]["output"]).shape) == (32, 32, 32, 3)


def test_files_of_one_name(toy: Models, square: Square, tmp_path: Path) -> None:
    names = ["a.mp4", "a.avi"]
    for name in names:
        write_video(tmp_path / name, square(4, 32, 32, 0), 10)
    result = reconstruct_files(toy, [tmp_path / n for n in names], tmp_path / "out")
    assert [Path(row["output"]).name for row in result["files"]] == ["a-mp4.mp4", "a-avi.mp4"]
    with pytest.raises(ValueError, match=r"several files are called a-mp4"):
        reconstruct_files(toy, [tmp_path / "a.mp4"] * 2, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_file_that_cannot_be_read_costs_only_itself(
    toy: Models, square: Square, assets: Path, tmp_path: Path
) -> None:
    """Named and left out, also of all scores, whether it breaks at once or in the middle."""
    for name, seed in (("good.mp4", 0), ("also.mp4", 1)):
        write_video(tmp_path / name, square(40, 32, 32, seed), 10)
    (tmp_path / "bad.mp4").write_text("no video")
    late = tmp_path / "late.mp4"
    write_video(late, square(300, 64, 64, 3), 10, crf=1, keyframe_every=16)
    content = bytearray(late.read_bytes())
    middle = len(content) * 9 // 10
    content[middle : middle + 200] = bytes(200)
    late.write_bytes(content)
    files = [tmp_path / name for name in ("good.mp4", "bad.mp4", "late.mp4", "also.mp4")]
    result = reconstruct_files(toy, files, tmp_path / "out")
    alone = reconstruct_files(toy, [files[0], files[3]], tmp_path / "alone")
    assert [row["file"] for row in result["damaged"]] == [str(files[1]), str(late)]
    assert re.search(r"late\.mp4: damaged: \d+ of 300 frames", result["damaged"][1]["reason"])
    for key in ("num_files", "frames", "psnr", "psnr_pooled", "ssim", "bits_per_pixel"):
        assert result[key] == alone[key]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["also.mp4", "good.mp4"]
    with pytest.raises(VideoError, match=r"2 of 4 files could not be read: .*bad\.mp4.*late"):
        require_all_read(result)
    require_all_read(alone)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        reconstruct_files(toy, [tmp_path / "bad.mp4"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "frames"), [("trunc_fast.mp4", 20), ("trunc.avi", 25), ("dmg.webm", 30)]
)
def test_damaged_file(
    toy: Models, assets: Path, tmp_path: Path, name: str, frames: int, caplog: Any
) -> None:
    """Refused by default; on request all that can be decoded, and what is lost is told."""
    path = assets / "odd" / name
    with pytest.raises(VideoError, match=rf"{name}: damaged: {frames} of 40 frames"):
        reconstruct_files(toy, [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    caplog.clear()
    result = reconstruct_files(
        toy, [path], tmp_path / "out", settings=EncodeSettings(allow_damaged=True)
    )
    assert result["frames"] == frames
    (row,) = result["damaged"]
    assert (row["file"], row["frames"], row["expected"]) == (str(path), frames, 40)
    assert f"damaged: {frames} of 40 frames" in row["reason"] and row["reason"] in caplog.text
    require_all_read(result)


@pytest.mark.parametrize("name", ["vfr.mp4", "durs.gif"])
def test_times_of_frames_are_kept(toy: Models, assets: Path, tmp_path: Path, name: str) -> None:
    """A video that slows down slows down in its reconstruction too."""
    path = assets / "odd" / name
    (row,) = reconstruct_files(toy, [path], tmp_path / "out")["files"]
    there, here = frame_times(path).times, frame_times(row["output"]).times
    assert len(here) == len(there)
    for time, told in zip(here, there, strict=True):
        assert float(time - here[0]) == pytest.approx(float(told - there[0]), abs=1e-4)


@pytest.mark.parametrize("fit", ["tile", "crop", "pad", "stretch"])
def test_a_reconstruction_is_that_of_the_token_file(
    toy: Models, square: Square, tmp_path: Path, fit: str
) -> None:
    """The whole picture at its own size, to the last byte of `encode` and `decode`."""
    path, settings = tmp_path / "in.mp4", EncodeSettings(fit=fit)  # type: ignore[arg-type]
    write_video(path, square(21, 38, 56, 0), 12)
    (row,) = reconstruct_files(toy, [path], tmp_path / "out", None, settings, plain=True)["files"]
    told = encode_file(toy, path, tmp_path / "a.evt", settings=settings)
    decode_file(toy, tmp_path / "a.evt", tmp_path / "again.mp4")
    assert row["tokens"] == told["tokens"] and row["tiles"] == told["tiles"]
    assert tuple(read_frames(row["output"]).shape[1:3]) == ((32, 32) if fit == "crop" else (38, 56))
    assert Path(row["output"]).read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_a_tiny_picture_has_no_ssim_and_a_psnr(toy: Models, square: Square, tmp_path: Path) -> None:
    """Below the window of SSIM such files ended in an error of the measure."""
    path = tmp_path / "in.mp4"
    write_video(path, square(5, 8, 12, 0), 12)
    result = reconstruct_files(toy, [path], tmp_path / "out")
    assert result["ssim"] is None and result["psnr"] > 0
