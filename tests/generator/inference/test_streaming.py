"""Streamed clips are the clips that are decoded afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from generator.conditions import FrameCondition
from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference.engine import sample, stream
from generator.inference.requests import Request, SamplingConfig, class_requests, frame_requests
from generator.inference.streaming import stream_frames, stream_pixels
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from video.clips import to_frames

SIZE = 16


@pytest.fixture
def real_tokenizer(vocabulary: Vocabulary) -> VideoTokenizer:
    """With weights far from their start, so that every path carries signal."""
    former = QFormerConfig(width=24, layers=2, heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoTokenizer(
            TokenizerConfig(
                levels=vocabulary.levels,
                num_frames=16,
                size=SIZE,
                patch=(4, 8, 8),
                codebook_size=vocabulary.codebook_size,
                encoder=former,
                decoder=former,
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval().requires_grad_(False)


def mixed(gpt: GPT, tokenizer: VideoTokenizer, frames: FrameCondition) -> list[Request]:
    """Guided, plain and frame-conditional requests."""
    clips = torch.rand(3, 3, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = tokenizer.encode(frames.pad(clips), torch.tensor([frames.prefix] * 3))
    free = SamplingConfig()
    return [
        *class_requests(gpt.vocabulary, [0, 1, 2], [1, 2, 3], SamplingConfig(guidance=2.0)),
        *frame_requests(gpt.vocabulary, frames, condition, [4, 5, 6], free),
        *class_requests(gpt.vocabulary, [None, 1, 0], [7, 8, 9], free),
    ]


@pytest.mark.parametrize("repredict", [True, False])
def test_streamed_blocks_are_the_whole_clips(
    make_gpt: Callable[..., GPT],
    vocabulary: Vocabulary,
    real_tokenizer: VideoTokenizer,
    repredict: bool,
) -> None:
    frames = FrameCondition(num_frames=5, prefix=(5, 2), repredict_partial=repredict)
    gpt = make_gpt(vocabulary, frames)
    requests = mixed(gpt, real_tokenizer, frames)
    drawn = sample(gpt, requests, batch_size=4)
    whole = real_tokenizer.decode(drawn).clamp(-1, 1)
    seen: dict[int, list[torch.Tensor]] = {}
    for done in stream_pixels(gpt, real_tokenizer, requests, batch_size=4):
        request, block, pixels, tokens = done
        assert block == len(seen.setdefault(request, []))  # in order, none left out
        assert pixels.shape == (3, 4, SIZE, SIZE) and tokens == drawn.assignment[request, block]
        seen[request].append(pixels)
    assert sorted(seen) == list(range(len(requests)))
    for number, blocks in seen.items():
        assert torch.allclose(torch.cat(blocks, 1), whole[number], atol=1e-5)


def test_frames_come_while_others_are_at_work(
    gpt: GPT, real_tokenizer: VideoTokenizer, frames: FrameCondition
) -> None:
    requests = mixed(gpt, real_tokenizer, frames)
    whole = real_tokenizer.decode(sample(gpt, requests, batch_size=4))
    order, first = [], None
    for done in stream_frames(gpt, real_tokenizer, requests, batch_size=4):
        assert done.pixels.dtype == torch.uint8 and done.pixels.shape == (4, SIZE, SIZE, 3)
        first = first or done
        order.append(done.request)
    assert len(order) == 4 * len(requests)
    assert order != sorted(order)  # clip by clip it would be no stream
    assert first is not None
    want = to_frames(whole[first.request, :, 4 * first.block : 4 * first.block + 4])
    assert (first.pixels.int() - want.int()).abs().max() <= 1  # rounded from a last bit apart


def test_drawing_blocks_leaves_the_caller_alone(gpt: GPT) -> None:
    """The engine works in inference mode; who takes its blocks does not."""
    requests = class_requests(gpt.vocabulary, [0, 1], [0, 1], SamplingConfig())
    blocks = stream(gpt, requests)
    next(blocks)
    assert not torch.is_inference_mode_enabled()
    blocks.close()  # and nobody has to draw them all
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_a_wrong_request_is_refused_at_once(gpt: GPT) -> None:
    longer = SamplingConfig(budget={"max_tokens": 1})  # type: ignore[arg-type]
    requests = class_requests(gpt.vocabulary, [0], [0], longer)
    with pytest.raises(ValueError, match="max_tokens 1"):
        next(stream(gpt, requests))
