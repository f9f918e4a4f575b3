from __future__ import annotations

import pytest
import torch

from generator.conditions import (
    FrameCondition,
    class_prompt,
    frames_prompt,
    longest_sequence,
    uniform,
)
from generator.grammar import Vocabulary


def test_given_frames_are_padded_with_the_last_one() -> None:
    clips = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 3, 16, 2, 2)
    padded = FrameCondition().pad(clips)
    assert padded.shape == (2, 3, 8, 2, 2)
    assert padded[1, 2, :, 1, 0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert torch.equal(FrameCondition().pad(clips[:, :, :5]), padded)
    with pytest.raises(ValueError, match="4 frames given"):
        FrameCondition().pad(clips[:, :, :4])


@pytest.mark.parametrize(
    ("num_frames", "prefix", "repredict", "kept"),
    [(5, (5, 2), True, 1), (5, (5, 2), False, 2), (8, (5, 2), True, 2), (3, (5,), True, 0)],
)
def test_blocks_that_are_kept(
    num_frames: int, prefix: tuple[int, ...], repredict: bool, kept: int
) -> None:
    condition = FrameCondition(num_frames=num_frames, prefix=prefix, repredict_partial=repredict)
    assert condition.kept_blocks == kept


def test_prompts_of_fixed_length(vocabulary: Vocabulary, frames: FrameCondition) -> None:
    assert class_prompt(vocabulary, 2).tolist() == [vocabulary.class_token(2)]
    assert class_prompt(vocabulary, None).tolist() == [vocabulary.null]
    prompt = frames_prompt(vocabulary, [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6, 7])])
    length = vocabulary.first_length
    assert prompt.tolist() == [
        *[vocabulary.frames, length + 2, 1, 2, 3, 4, 5, length + 1, 6, 7],
        vocabulary.separator,
    ]
    assert len(prompt) == frames.num_tokens


def test_longest_sequence(vocabulary: Vocabulary, frames: FrameCondition) -> None:
    assert longest_sequence(vocabulary, None) == 1 + 4 * 6
    assert longest_sequence(vocabulary, frames) == 11 + 3 * 6


def test_uniform_honours_the_prefix() -> None:
    clips = torch.zeros(2, 3, 16, 8, 8)
    assert uniform(2, 4)(clips).tolist() == [[2, 2, 2, 2]] * 2
    assert uniform(2, 4)(clips, (5, 1)).tolist() == [[5, 1, 2, 2]] * 2


def test_errors_name_the_rule(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="5 given frames fill 2 blocks"):
        FrameCondition(num_frames=5, prefix=(5,))
    with pytest.raises(ValueError, match="leave none"):
        FrameCondition(num_frames=16, prefix=(1, 1, 1, 1)).check(vocabulary)
