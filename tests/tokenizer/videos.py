"""Small sets of videos for tests of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from video.writing import write_video


def striped_videos(directory: Path, count: int, length: int) -> dict[str, Any]:
    """Settings of data: videos of still, slow and fast stripes in different colours, 16 × 16."""
    for number in range(count):
        t, _, x = torch.meshgrid(
            torch.arange(length), torch.arange(16), torch.arange(16), indexing="ij"
        )
        wave = ((x + number * t) // 3 % 2) * 200
        frames = torch.stack([wave, 255 - wave, torch.full_like(wave, 40 * number)], -1)
        write_video(directory / "videos" / f"{number}.mp4", frames.to(torch.uint8), crf=8)
    return {
        "sources": [{"kind": "folder", "root": directory / "videos"}],
        "num_frames": 12,
        "size": 16,
        "cache_dir": directory / "cache",
        "workers": 1,
    }
