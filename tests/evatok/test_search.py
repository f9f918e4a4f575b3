"""Stage 2 from settings: the table is the same for any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evatok.search import SearchConfig, search_config
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from video.io import write_video


def test_processes_share_the_work_and_change_nothing(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        frames = torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, crf=8)
    former = QFormerConfig(width=16, layers=1, heads=2)
    torch.manual_seed(0)
    VideoTokenizer(
        TokenizerConfig(
            levels=(1, 4), num_frames=8, size=16, encoder=former, decoder=former, codebook_size=8
        )
    ).save_pretrained(tmp_path / "model")
    settings = {
        "data": {
            "sources": [{"kind": "folder", "root": tmp_path / "videos"}],
            "num_frames": 8,
            "size": 16,
            "cache_dir": tmp_path / "cache",
        },
        "model": tmp_path / "model",
        "clips": 6,
        "batch_size": 2,
    }
    told: list[tuple[str, int, int]] = []
    for processes in (1, 2):
        config = SearchConfig.model_validate(settings | {"processes": processes})
        result = search_config(config, tmp_path / str(processes), lambda *row: told.append(row))
        assert result["train"]["clips"] == 6 and result["test"]["clips"] == 5
        assert told[-1] == ("test", 5, 5)
    one, two = (sorted((tmp_path / n).glob("*/*.parquet")) for n in "12")
    assert len(one) == 6 and [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    absent = SearchConfig.model_validate(settings | {"model": tmp_path / "nothing"})
    with pytest.raises(FileNotFoundError, match="train the proxy first"):
        search_config(absent, tmp_path / "x")
