"""Arrays and folders of pictures beside video files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio.v3 import imwrite

from evaluation.inputs import find_videos
from video.decoding.container import VideoError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_same_pixels_however_they_come(tmp_path: Path) -> None:
    """Pictures, npz and pt of either layout: equal frames; bytes and floats equal digests."""
    frames = noise(5, 16, 16, 3)
    for number, frame in enumerate(frames):
        (tmp_path / "frames" / "one").mkdir(parents=True, exist_ok=True)
        imwrite(tmp_path / "frames" / "one" / f"frame{number + 8}.png", frame)  # 8, 9, 10 …
    np.savez(tmp_path / "single.npz", video=frames)
    np.savez(tmp_path / "several.npz", videos=frames[None].repeat(2, 0))
    first = torch.from_numpy(frames)[None].permute(0, 4, 1, 2, 3)  # (1, 3, F, H, W)
    torch.save(first, tmp_path / "bytes.pt")
    torch.save({"made": first.float() / 127.5 - 1}, tmp_path / "floats.pt")
    for name in ("frames", "single.npz", "several.npz", "bytes.pt", "floats.pt"):
        videos = find_videos(tmp_path / name)
        assert len(videos) == (2 if name == "several.npz" else 1)
        assert torch.equal(videos[-1].read(None, 16), torch.from_numpy(frames))
        assert len(videos[-1].read(3, 8)) == 3
    digests = {
        find_videos(tmp_path / f"{n}")[0].digest() for n in ("single.npz", "bytes.pt", "floats.pt")
    }
    assert len(digests) == 1
    everything = find_videos(tmp_path)
    assert [v.name for v in everything] == [
        "bytes.pt/clips/000000", "floats.pt/made/000000", "frames/one",
        "several.npz/videos/000000", "several.npz/videos/000001", "single.npz/video/000000",
    ]  # fmt: skip


def test_refusals(tmp_path: Path) -> None:
    cases = {
        "range.pt": (torch.rand(2, 3, 4, 8, 8), r"reach from .* must be in \[-1, 1\]"),
        "wide.pt": (torch.randn(2, 3, 4, 8, 8) * 9, "must be in"),
        "shape.pt": (torch.zeros(4, 8, 8, dtype=torch.uint8), r"clips is uint8 \(4, 8, 8\)"),
        "kind.pt": (torch.zeros(2, 4, 8, 8, 3, dtype=torch.int64), "clips is int64"),
        "words.pt": ({"a": "text"}, "a is a str, no tensor"),
    }
    for name, (value, match) in cases.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(ValueError, match=match):
            find_videos(tmp_path / name)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(print, protocol=2))
    np.savez(tmp_path / "evil.npz", a=np.array([{}], dtype=object))
    (tmp_path / "torn.npz").write_bytes(b"PK no archive")
    for name in ("evil.pt", "evil.npz", "torn.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no plain arrays"):
            find_videos(tmp_path / name)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"notes\.txt is none of"):
        find_videos(tmp_path / "notes.txt")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"0\.png: no readable picture"):
        find_videos(tmp_path / "frames")[0].read(None, 8)
