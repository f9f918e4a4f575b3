"""Toy tokenizers whose weights are far from their start, so that every path carries signal."""

from __future__ import annotations

import pytest
import torch

from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig


def toy(start: str = "aligned", **changes: object) -> VideoTokenizer:
    settings: dict[str, object] = {
        "levels": (1, 2, 4, 8),
        "num_frames": 12,
        "size": 16,
        "patch": (4, 8, 8),
        "codebook_size": 32,
        "encoder": QFormerConfig(width=24, layers=2, heads=2),
        "decoder": QFormerConfig(width=32, layers=2, heads=2),
        "decoder_start": start,
    }
    torch.manual_seed(0)
    model = VideoTokenizer(TokenizerConfig.model_validate(settings | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(params=["aligned", "first"])
def model(request: pytest.FixtureRequest) -> VideoTokenizer:
    return toy(request.param)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(5, 3, 12, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def assignment() -> torch.Tensor:
    return torch.tensor([[1, 8, 2], [4, 4, 4], [1, 8, 2], [8, 1, 1], [2, 2, 8]])
