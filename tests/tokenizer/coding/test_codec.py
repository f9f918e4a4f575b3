"""Whole videos of any length and size, and ways to choose assignments."""

from __future__ import annotations

import pytest
import torch

from tokenizer.coding.codec import Codec
from tokenizer.model import VideoTokenizer
from tokenizer.search.assigners import make_assigner


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 16, 16), (12, 20, 31), (13, 41, 17), (40, 16, 64)]
)
def test_any_length_and_size(model: VideoTokenizer, frames: int, height: int, width: int) -> None:
    video = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8)
    seen: list[int] = []
    codec = Codec(model, make_assigner("uniform:4", model), batch_size=2)
    coded = codec.reconstruct(video, seen.append)
    assert coded.original.shape == coded.frames.shape == (frames, 16, 16, 3)
    clips = -(-frames // 12)
    assert coded.tokens.assignment.shape == (clips, 3) and coded.psnr.shape == (clips,)
    assert seen[-1] == frames
    assert torch.equal(codec.reconstruct(video).frames, coded.frames)


def test_psnr_counts_real_frames_only(model: VideoTokenizer) -> None:
    video = torch.randint(0, 256, (14, 16, 16, 3), dtype=torch.uint8)
    coded = Codec(model, make_assigner("8,4,1", model)).reconstruct(video)
    error = (coded.frames[12:].float() - coded.original[12:].float()) / 255
    torch.testing.assert_close(coded.psnr[1], -10 * error.square().mean().log10())


def test_no_frames_are_refused(model: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="F ≥ 1"):
        Codec(model, make_assigner("uniform:1", model)).reconstruct(torch.zeros(0, 8, 8, 3))
