"""Arrays and folders of pictures beside video files."""

from __future__ import annotations

import io
import pickle
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio.v3 import imwrite

from evaluation.scoring import readers
from evaluation.scoring.readers import find_videos
from evatok.cli.errors import message_for_user
from video.decoding.container import VideoError
from video.writing import write_video


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
        assert torch.equal(videos[-1].read(None, 16, "bytes"), torch.from_numpy(frames))
        assert len(videos[-1].read(3, 8, "bytes")) == 3
    digests = {
        find_videos(tmp_path / f"{n}")[0].digest() for n in ("single.npz", "bytes.pt", "floats.pt")
    }
    assert len(digests) == 1
    everything = find_videos(tmp_path)
    assert [v.name for v in everything] == [
        "bytes.pt/clips/000000", "floats.pt/made/000000", "frames/one",
        "several.npz/videos/000000", "several.npz/videos/000001", "single.npz/video/000000",
    ]  # fmt: skip


def test_arrays_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One array is held at a time, and each is read once while all are gone through."""
    sets = {key: noise(3, 4, 8, 8, 3) + np.uint8(n) for n, key in enumerate("abcde")}
    np.savez(tmp_path / "one.npz", a=sets["a"], b=sets["b"])
    np.save(tmp_path / "three.npy", sets["c"])
    torch.save({k: torch.from_numpy(sets[k]) for k in "de"}, tmp_path / "two.pt")
    monkeypatch.setattr(readers, "KEPT", 1)
    videos = find_videos(tmp_path)
    loaded: list[tuple[str, str | None]] = []
    load = readers._load

    def counted(path: Path, only: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        loaded.append((path.name, only))
        return load(path, only)

    monkeypatch.setattr(readers, "_load", counted)
    for video in videos:
        _, key, number = video.name.split("/")
        expected = sets["c" if key == "clips" else key][int(number)]
        assert torch.equal(video.read(None, 8, "bytes"), torch.from_numpy(expected))
        assert video.count(None) == 4
    assert loaded == [("one.npz", "a"), ("one.npz", "b"), ("three.npy", None), ("two.pt", None)]
    digests = [video.digest() for video in videos]
    assert len(loaded) == 8 and digests == [video.digest() for video in videos]
    assert len(loaded) == 8  # which they know by now
    np.save(tmp_path / "three.npy", sets["a"][:2])
    changed = next(video for video in videos if video.name.startswith("three"))
    with pytest.raises(VideoError, match=r"three\.npy has changed since"):
        changed.read(None, 8, "bytes")
    monkeypatch.setattr(readers, "KEPT", 2**20)
    for video in [*(videos := find_videos(tmp_path / "one.npz")), *videos[::-1]]:
        video.read(None, 8, "bytes")
    assert loaded[-1] == ("one.npz", None) and len(loaded) == 9  # all are held


def test_lists_of_videos(tmp_path: Path) -> None:
    """Of UCF-101 and of Kinetics: what they name, sorted, with the names of the whole folder."""
    for name in ("b/2.mp4", "b/1.mp4", "a/3.mp4"):
        write_video(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), 8)
    whole = {video.name: video.digest() for video in find_videos(tmp_path)}
    (tmp_path / "trainlist01.txt").write_text("b/2.mp4 1\nb/1.mp4 1\n")
    (tmp_path / "val.csv").write_text("id,path,action,label\n1,a/3.mp4,yoga,0\n")
    for name, files in (("trainlist01.txt", ["b/1.mp4", "b/2.mp4"]), ("val.csv", ["a/3.mp4"])):
        found = find_videos(tmp_path / name)
        assert {video.name: video.digest() for video in found} == {k: whole[k] for k in files}
        assert [video.name for video in found] == files
    (tmp_path / "val.csv").write_text("path\na/3.mp4\na/4.mp4\n")
    with pytest.raises(
        ValueError, match=r"val\.csv names a/4\.mp4, which is not in .*\(1 of 2 are"
    ):
        find_videos(tmp_path / "val.csv")


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
        with pytest.raises(ValueError, match=f"{name} holds no plain (arrays|tensors)"):
            find_videos(tmp_path / name)
    for name, match in (("notes.md", r"notes\.md is none of"), ("empty.txt", "names no video")):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=match):
            find_videos(tmp_path / name)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"0\.png: no readable picture"):
        find_videos(tmp_path / "frames")[0].read(None, 8, "bytes")


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def arrays(**named: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **named)  # type: ignore[arg-type]
    return file.getvalue()


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (4000000, 16, 1024, 1024, 3)}"
CLIP = torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8)
DAMAGED = {
    "empty.npz": b"",
    "empty.pt": b"",
    "none.npz": arrays(),
    "none.pt": saved({}),
    "rows.npz": arrays(videos=np.zeros((0, 4, 8, 8, 3), np.uint8)),
    "frames.npz": arrays(videos=np.zeros((2, 0, 8, 8, 3), np.uint8)),
    "rows.pt": saved(torch.zeros(0, 3, 4, 8, 8)),
    "pixels.pt": saved(torch.zeros(2, 3, 4, 0, 8)),
    "words.npz": arrays(videos=np.array(["a", "b"])),
    "objects.npz": zipped(
        "videos.npy",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([print])),
    ),
    "terabytes.npz": zipped("videos.npy", npy(HUGE)),
    "bomb.npz": zipped("videos.npy", npy(HUGE, b"\0" * 10**6), zipfile.ZIP_DEFLATED),
    "negative.npz": zipped("v.npy", npy(HUGE.replace("4000000", "-1"))),
    "junk.npz": zipped("v.npy", b"no array"),
    "unclosed.npz": zipped("v.npy", npy("{'descr': '|u1', 'shape': (1,")),
    "text.npz": zipped("readme.txt", b"no array"),
    "nonsense.npz": b"\x93NUMPY" + b"\xff" * 50,
    "cut.npz": arrays(videos=np.zeros((1, 4, 8, 8, 3), np.uint8))[:-200],
    "cut.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 8, 8, 3)}", b"\0" * 9),
    "objects.npy": npy(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([print])
    ),
    "mixed.pt": saved({"a": CLIP, 3: CLIP, ("b", 1): "text"}),
    "list.pt": saved([CLIP, CLIP]),
    "sparse.pt": saved(torch.eye(3).to_sparse()),
    "wide.pt": saved(torch.zeros(1, dtype=torch.uint8).expand(10**9, 4, 8, 8, 3)),
    "meta.pt": saved(torch.zeros(1, 3, 4, 8, 8, device="meta")),
    "junk.pt": b"\x80\x02no tensors at all",
    "zip.pt": zipped("archive/data.pkl", b"\x80\x02}q\x00."),
    "cut.pt": saved(CLIP)[:-100],
    "old.pt": saved(CLIP, _use_new_zipfile_serialization=False)[:-20],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_arrays_of_anyones_making(name: str, tmp_path: Path) -> None:
    """One line that names the file, and no memory for what is only declared."""
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        find_videos(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert message_for_user(caught.value) is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_compressed_and_legacy_arrays_are_read(tmp_path: Path) -> None:
    black = np.zeros((2, 4, 64, 64, 3), np.uint8)
    np.savez_compressed(tmp_path / "black.npz", videos=black)
    torch.save(CLIP, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert len(find_videos(tmp_path / "black.npz")) == 2
    assert torch.equal(
        find_videos(tmp_path / "old.pt")[0].read(None, 8, "bytes"), torch.zeros(4, 8, 8, 3)
    )
