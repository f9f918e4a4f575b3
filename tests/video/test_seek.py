"""Windows from anywhere in a file are the frames that decoding from the start gives."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from video.decoding.container import VideoError
from video.reading import read_frames
from video.seek import count_frames, read_window
from video.writing import write_video


def moving(frames: int, seed: int = 0) -> Tensor:
    """(F, 32, 48, 3) uint8: noise that drifts, so that every frame differs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (32, 48 + frames, 3), generator=generator, dtype=torch.uint8)
    return torch.stack([noise[:, i : i + 48] for i in range(frames)])


@pytest.mark.parametrize("fps", [25, 29.97, 12.5, 23.976])
def test_every_window_of_a_prepared_file(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving(43), fps, keyframe_every=16)
    whole = read_frames(path)
    assert count_frames(path) == len(whole) == 43
    for start in range(43):
        assert torch.equal(read_window(path, start, 16), whole[start : start + 16])
    small = read_window(path, 20, 5, size=16)
    assert torch.equal(small, read_frames(path, 20, 5, size=16))
    with pytest.raises(VideoError, match="ends before frame 43"):
        read_window(path, 43, 16)


def test_key_frames_are_where_they_were_asked_for(tmp_path: Path) -> None:
    cut = torch.cat([moving(20), moving(30, seed=1)])  # a new scene asks for one of its own
    write_video(tmp_path / "a.mp4", cut, keyframe_every=16)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    packets.sort(key=lambda packet: packet.pts or 0)
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 16, 32, 48]


@pytest.mark.parametrize("name", ["open.mkv", "b.avi", "c.gif", "d.webp"])
def test_other_files_are_read_from_the_start(tmp_path: Path, name: str) -> None:
    """Among them one whose key frames are no safe beginnings: its groups are open."""
    path, pictures = tmp_path / name, moving(40).numpy()
    if name == "open.mkv":
        with av.open(str(path), "w") as container:
            options = {"x264-params": "open-gop=1:keyint=8:bframes=3", "crf": "10"}
            stream = container.add_stream("libx264", rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    elif name == "d.webp":
        first, *rest = (Image.fromarray(picture) for picture in pictures)
        first.save(path, save_all=True, append_images=rest, duration=40)
    else:
        write_video(path, pictures)
    whole = read_frames(path, size=32)
    assert count_frames(path) == len(whole) == 40
    for start in (0, 20, 37):
        assert torch.equal(read_window(path, start, 16, size=32), whole[start : start + 16])


def test_damage_is_told(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(64), keyframe_every=16)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    start = content.index(b"mdat") + 4000
    content[start : start + 6000] = bytes(6000)
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        for frame in range(0, 64, 16):
            read_window(tmp_path / "bad.mp4", frame, 16)
