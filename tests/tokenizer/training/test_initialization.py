"""Starting from what has been trained before."""

from __future__ import annotations

import pytest
import torch

from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.training.initialization import initialise_from

FORMER = {"width": 16, "layers": 1, "heads": 2}


@torch.no_grad()
def test_longer_clips_start_from_shorter_ones() -> None:
    """What is known is as it was; blocks that are new get the last one's positions."""
    settings = {"levels": (1, 4), "size": 16, "encoder": FORMER, "decoder": FORMER,
                "codebook_size": 8, "num_frames": 8}  # fmt: skip
    torch.manual_seed(0)
    source = VideoTokenizer(TokenizerConfig.model_validate(settings)).eval()
    for parameter in source.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    config = TokenizerConfig.model_validate(settings | {"num_frames": 16})
    model = VideoTokenizer(config).eval()
    fixed = model.encoder_places.position.clone()
    initialise_from(model, source)
    clips = torch.rand(2, 3, 16, 16, 16) * 2 - 1
    short = source(clips[:, :, :8], torch.tensor([[4, 1]]).expand(2, -1))
    long = model(clips, torch.tensor([[4, 1, 4, 4]]).expand(2, -1))
    torch.testing.assert_close(long.clips[:, :, :8], short.clips)
    learned = (model.encoder_places.position - fixed).unflatten(0, (4, -1))
    torch.testing.assert_close(learned[3], learned[1])
    other = VideoTokenizer(TokenizerConfig.model_validate(settings | {"levels": (1, 2)}))
    with pytest.raises(ValueError, match="another levels"):
        initialise_from(model, other)
    with pytest.raises(ValueError, match="another num_frames"):
        initialise_from(source, model)
