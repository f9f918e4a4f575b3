"""Whole videos of any length and size, and ways to choose assignments."""

from __future__ import annotations

import pytest
import torch

from tokenizer.codec import Codec, make_assigner
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router, RouterConfig


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


def test_assigners_by_name(model: VideoTokenizer) -> None:
    clips = torch.zeros(2, 3, 12, 16, 16)
    assert make_assigner("8,4,1", model)(clips).tolist() == [[8, 4, 1]] * 2
    assert make_assigner("uniform:2", model)(clips).tolist() == [[2, 2, 2]] * 2
    config = RouterConfig(levels=(1, 2, 4, 8), num_frames=12, size=16, width=16, layers=1, heads=2)
    assert make_assigner("router", model, Router(config))(clips).shape == (2, 3)
    for spec, reason in (
        ("router", "needs a router"),
        ("uniform:3", r"\[3\] are not levels"),
        ("uniform:", "choose 'router'"),
        ("uniform:2,2,2", "choose 'router'"),
        ("2", "choose 'router'"),
        ("best", "choose 'router'"),
        ("1,2", "has 2 levels; a clip has 3"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_assigner(spec, model)
    other = Router(config.model_copy(update={"levels": (1, 2)}))
    with pytest.raises(ValueError, match="are not the tokenizer's"):
        make_assigner("router", model, other)


def test_no_frames_are_refused(model: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="F ≥ 1"):
        Codec(model, make_assigner("uniform:1", model)).reconstruct(torch.zeros(0, 8, 8, 3))
