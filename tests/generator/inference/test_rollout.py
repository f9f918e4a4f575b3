"""Predictions of any length, window by window."""

from __future__ import annotations

import pytest
import torch

from generator.gpt import GPT
from generator.inference.engine import sample
from generator.inference.requests import SamplingConfig, frame_requests
from generator.inference.rollout import continue_clips, num_windows, window_seed

FREE = SamplingConfig()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(3, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("count", "windows"), [(6, 1), (16, 1), (17, 2), (27, 2), (28, 3), (38, 3), (39, 4)]
)
def test_exactly_the_frames_asked_for(
    gpt: GPT, tokenizer, clips: torch.Tensor, count: int, windows: int
) -> None:
    done = continue_clips(gpt, tokenizer, clips, count, [1, 2, 3], FREE)
    assert done.videos.shape == (3, 3, count, 8, 8)
    assert len(done.windows) == windows == num_windows(count, 16, 5)


def test_windows_one_by_one(gpt: GPT, tokenizer, clips: torch.Tensor) -> None:
    """Against the plain way: predict, cut the last frames off, predict from them."""
    frames = gpt.frames
    assert frames is not None
    done = continue_clips(gpt, tokenizer, clips, 38, [1, 2, 3], FREE)
    for row, seed in enumerate([1, 2, 3]):
        video, given = [], clips[row : row + 1]
        for number in range(3):
            condition = tokenizer.encode(frames.pad(given), torch.tensor([frames.prefix]))
            seeds = [window_seed(seed, number)]
            tokens = sample(gpt, frame_requests(gpt.vocabulary, frames, condition, seeds, FREE))
            mine = [block.tolist() for block in done.windows[number].blocks()[row]]
            assert mine == [block.tolist() for block in tokens.blocks()[0]]
            made = tokenizer.decode(tokens)
            video.append(made[:, :, 5:] if number else made)
            given = made[:, :, -5:]
        assert torch.equal(done.videos[row], torch.cat(video, 2)[0])


def test_the_first_window_is_the_plain_prediction(gpt: GPT, tokenizer, clips: torch.Tensor) -> None:
    short = continue_clips(gpt, tokenizer, clips, 16, [1, 2, 3], FREE)
    long = continue_clips(gpt, tokenizer, clips, 40, [1, 2, 3], FREE)
    assert torch.equal(long.videos[:, :, :16], short.videos)
    assert torch.equal(long.windows[0].ids, short.windows[0].ids)


def test_requests_are_independent(gpt: GPT, tokenizer, clips: torch.Tensor) -> None:
    together = continue_clips(gpt, tokenizer, clips, 30, [1, 2, 3], FREE, batch_size=2)
    for row, seed in enumerate([1, 2, 3]):
        alone = continue_clips(gpt, tokenizer, clips[row : row + 1], 30, [seed], FREE)
        assert torch.equal(alone.videos[0], together.videos[row])
    same = continue_clips(gpt, tokenizer, clips[:1].repeat(2, 1, 1, 1, 1), 30, [1, 9], FREE)
    assert not torch.equal(same.videos[0], same.videos[1])


def test_seeds_of_windows_differ() -> None:
    seeds = {window_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400 and window_seed(7, 0) == 7


def test_what_cannot_be_asked_for(gpt: GPT, tokenizer, clips: torch.Tensor, make_gpt) -> None:
    with pytest.raises(ValueError, match="5 are given: ask for more"):
        continue_clips(gpt, tokenizer, clips, 5, [1, 2, 3], FREE)
    with pytest.raises(ValueError, match="not trained to predict"):
        continue_clips(make_gpt(gpt.vocabulary), tokenizer, clips, 16, [1, 2, 3], FREE)
