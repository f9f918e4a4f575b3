"""Beam and autoregressive search against the exact one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.model import VideoTokenizer
from tokenizer.search.beam import beam_search
from tokenizer.search.candidates import candidate_errors
from tokenizer.search.reward import RewardStats, psnr_of_mse, reward_stats, rewards

W_Q = 1.3


def exact(model: VideoTokenizer, clips: Tensor) -> tuple[Tensor, Tensor, RewardStats]:
    """Errors and rewards of all candidates (B, M), and the statistics."""
    errors = candidate_errors(model, clips, "brute")
    lengths = model.levels.candidates(3).sum(1)
    standard = reward_stats(psnr_of_mse(errors), lengths)
    return errors, rewards(psnr_of_mse(errors), lengths, standard, W_Q), standard


def test_a_wide_beam_is_exact(model: VideoTokenizer, clips: Tensor) -> None:
    errors, table, standard = exact(model, clips)
    for width, span in ((64, 1), (1, 3)):  # all prefixes kept; never pruned before the end
        found = beam_search(model, clips, standard, W_Q, width, span)
        index = model.levels.index(found.assignment)
        assert torch.equal(index, table.argmax(1))
        torch.testing.assert_close(found.reward, table.max(1).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.mse, errors.gather(1, index[:, None])[:, 0])
        assert found.num_blocks == 5 * (4 + 16 + 64)


def test_a_narrow_beam_is_cheap_and_true(model: VideoTokenizer, clips: Tensor) -> None:
    """Its own numbers are those of the assignment that it returns."""
    errors, table, standard = exact(model, clips)
    found = beam_search(model, clips, standard, W_Q, 2)
    index = model.levels.index(found.assignment)
    torch.testing.assert_close(found.mse, errors.gather(1, index[:, None])[:, 0])
    assert (found.reward <= table.max(1).values + 1e-5).all()
    assert (found.reward >= table.median(1).values).all()
    assert found.num_blocks == 5 * (4 + 8 + 8)


@torch.no_grad()
def test_greedy_is_greedy(model: VideoTokenizer, clips: Tensor) -> None:
    """Width 1: each block takes the level that looks best, written out with whole passes."""
    _, _, standard = exact(model, clips)
    found = beam_search(model, clips, standard, W_Q, 1)
    for row, clip in enumerate(clips):
        prefix: list[int] = []
        for t in range(1, 4):
            scores = []
            for level in model.levels.values:
                blocks = [*prefix, level]
                out = model(clip[None, :, : 4 * t], torch.tensor([blocks])).clips.clamp(-1, 1)
                mse = (out - clip[None, :, : 4 * t]).square().mean().reshape(1, 1)
                length = torch.tensor([sum(blocks) * 3 / t])
                scores.append(float(rewards(psnr_of_mse(mse), length, standard, W_Q)))
            prefix.append(model.levels.values[scores.index(max(scores))])
        assert found.assignment[row].tolist() == prefix


def test_a_clip_does_not_depend_on_its_batch(model: VideoTokenizer, clips: Tensor) -> None:
    _, _, standard = exact(model, clips)
    together = beam_search(model, clips, standard, W_Q, 3)
    for row in range(len(clips)):
        alone = beam_search(model, clips[row : row + 1], standard, W_Q, 3)
        assert torch.equal(alone.assignment[0], together.assignment[row])


def test_no_width_is_refused(model: VideoTokenizer, clips: Tensor) -> None:
    _, _, standard = exact(model, clips)
    with pytest.raises(ValueError, match="width 0"):
        beam_search(model, clips, standard, W_Q, 0)
