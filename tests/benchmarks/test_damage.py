"""What the damage benchmark draws, writes and concludes; its figures are made apart."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import traps
from benchmarks.damage import curves, draw, verdicts, write
from evaluation.scoring.corruptions import DAMAGES
from video.writing import write_video


class Means:
    """A network whose features are the frames shrunk to 2 × 2."""

    name, dim, checksum = "means", 3 * 16 * 4, "0"

    def __call__(self, clips: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(clips, (16, 2, 2)).flatten(1)


@pytest.fixture(scope="module")
def clips() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(8, 3, 16, 16, 16, generator=generator).cumsum(2) / 8).clamp(-1, 1)


def test_curves_begin_at_nothing_and_are_judged(clips: Tensor, tmp_path: Path) -> None:
    found = curves("toy", clips, Means())
    assert len(found) == sum(1 + len(strengths) for _, strengths, _ in DAMAGES.values())
    assert all(row["fvd"] == pytest.approx(0, abs=1e-9) for row in found if row["step"] == 0)
    judged = {row["damage"]: row["monotonic"] for row in verdicts(found)}
    assert judged["freeze"] and judged["noise"]
    bent = [row | {"fvd": -row["fvd"]} for row in found]
    assert not any(row["monotonic"] for row in verdicts(bent))
    write(found, "means", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "damage-means-toy.svg",
        "damage-means.csv",
    ]
    with (tmp_path / "damage-means.csv").open(newline="") as file:
        assert [float(row["fvd"]) for row in csv.DictReader(file)] == [r["fvd"] for r in found]


def test_draws_one_clip_of_each_file(tmp_path: Path) -> None:
    for index in range(3):
        frames = torch.full((20, 16, 16, 3), 60 * index, dtype=torch.uint8)
        write_video(tmp_path / str(index // 2) / f"{index}.mp4", frames, crf=0)
    drawn = draw([tmp_path / "0", tmp_path / "1"], 3, 16)
    assert drawn.shape == (3, 3, 16, 16, 16)
    assert len(drawn.mean((1, 2, 3, 4)).round(decimals=1).unique()) == 3
    with pytest.raises(SystemExit, match=r"3 clips in .*not 4: lower --clips"):
        draw([tmp_path], 4, 16)


def test_traps_tell_what_moved(clips: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "compressed", lambda clips, crf: clips * (1 - crf / 100))
    found = {(row["trap"], row["variant"]): row["fvd"] for row in traps.rows(clips, Means())}
    base = found["base", "real against stand-in"]
    assert found["range", "[0, 1], both sides"] == pytest.approx(base / 4, rel=1e-3)
    assert found["range", "[0, 1], stand-in only"] > base
    assert found["count", "4 real against 4 other"] > base
    assert 0 < found["compression", "crf 18"] < found["compression", "crf 38"]


def test_compression_keeps_what_is_flat() -> None:
    flat = torch.tensor([-0.6, 0.0, 0.4]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 16, 16)
    assert float((traps.compressed(flat, 18) - flat).abs().max()) < 0.05
