"""Requests that have nothing in common, for tests of whoever serves them."""

from __future__ import annotations

import torch

from generator.gpt import GPT
from generator.inference.requests import Request, SamplingConfig, class_requests, frame_requests
from tokenizer.tokens import Tokens


def mixed_requests(gpt: GPT, count: int) -> list[Request]:
    """Requests of every kind in turn, with different settings."""
    vocabulary, frames = gpt.vocabulary, gpt.frames
    assert frames is not None
    settings = [
        SamplingConfig(guidance=2.5),
        SamplingConfig(temperature=0.7, top_k=5),
        SamplingConfig(guidance=1.5, top_p=0.8),
        SamplingConfig(),
    ]
    generator = torch.Generator().manual_seed(3)
    requests = []
    for i in range(count):
        if i % 4 == 3:
            blocks = [torch.randint(12, (k,), generator=generator) for k in frames.prefix]
            condition = Tokens.from_blocks([blocks])
            requests += frame_requests(vocabulary, frames, condition, [i], settings[i % 2])
        else:
            label = [0, 1, 2, None][i // 4 % 4]
            requests += class_requests(vocabulary, [label], [i], settings[i % 3])
    return requests
