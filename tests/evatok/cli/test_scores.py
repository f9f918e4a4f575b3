"""Options of `evatok fvd` and what they decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from evatok.cli.app import main


def test_unbiased_holds_beside_a_preset(
    toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        np.savez(tmp_path / side, x=rng.integers(0, 255, (3, 16, 16, 16, 3), np.uint8))
    sides = [str(tmp_path / f"{side}.npz") for side in ("a", "b")]
    words = ["fvd", *sides, "--model", str(toy_dir), "--features", "nano", "--no-cache"]
    words += ["--preset", "larp-ucf", "--count", "3", "--size", "16", "--json"]
    for more, biased in (([], True), (["--unbiased"], False)):
        assert main([*words, *more]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["biased"] is biased and result["cut"]["resize"] == "float"
    assert main([*words, "--resize", "bytes"]) == 0
    assert "resize" not in json.loads(capsys.readouterr().out.splitlines()[-1])["cut"]
    assert main([*words, "--resize", "round"]) == 2
    assert "resize 'round' is none of bytes, float" in capsys.readouterr().err


def write_kind(kind: str, folder: Path, videos: np.ndarray) -> Path:
    """Write videos (N, F, H, W, 3) uint8 in one kind of file, without loss."""
    folder.mkdir()
    if kind == "npy":
        np.save(folder / "videos.npy", videos)
        return folder / "videos.npy"
    for number, frames in enumerate(videos):
        pictures = [Image.fromarray(picture) for picture in frames]
        if kind == "webp":
            pictures[0].save(
                folder / f"{number}.webp", save_all=True, append_images=pictures[1:], lossless=True
            )
        elif kind == "frames":
            (folder / str(number)).mkdir()
            for place, picture in enumerate(pictures):
                picture.save(folder / str(number) / f"frame{place}.png")
        else:
            with av.open(str(folder / f"{number}.{kind}"), "w") as container:
                stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
                stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
                for picture in pictures:
                    container.mux(stream.encode(av.VideoFrame.from_image(picture)))
                container.mux(stream.encode())
    return folder


@pytest.mark.parametrize("kind", ["npy", "ts", "h264", "webp", "frames"])
def test_kinds_of_input(
    kind: str, toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pixels are the same number, on either side."""
    rng = np.random.default_rng(0)
    sides = [rng.integers(0, 255, (3, 12, 8, 8, 3), np.uint8).repeat(4, 2).repeat(4, 3)
             for _ in range(2)]  # fmt: skip
    plain = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, videos in zip(plain, sides, strict=True):
        np.savez(path, x=videos)
    written = write_kind(kind, tmp_path / "given", sides[0])

    def result(*paths: Path) -> dict[str, Any]:
        words = ["fvd", *map(str, paths), "--model", str(toy_dir), "--no-cache", "--json"]
        assert main([*words, "--size", "32", "--frames", "12"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    got = result(written, plain[1])
    assert got["num_real"] == 3 and not got["damaged_real"] and not got["padded_real"]
    expected = result(*plain)["fvd[nano]"]
    assert got["fvd[nano]"] == expected > 0
    assert result(plain[1], written)["fvd[nano]"] == expected
