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


@torch.no_grad()
def test_a_model_grows_out_of_a_smaller_one() -> None:
    """With more layers and codes it begins as good as the source: new layers do nothing yet."""
    settings = {"levels": (1, 4), "size": 16, "num_frames": 8, "codebook_size": 8,
                "encoder": FORMER, "decoder": FORMER}  # fmt: skip
    torch.manual_seed(0)
    source = VideoTokenizer(TokenizerConfig.model_validate(settings)).eval()
    for parameter in source.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    deep = settings | {"encoder": FORMER | {"layers": 2}, "decoder": FORMER | {"layers": 3}}
    clips = torch.rand(2, 3, 8, 16, 16) * 2 - 1
    assignment = torch.tensor([[4, 1]]).expand(2, -1)
    before = source(clips, assignment).clips
    deeper = VideoTokenizer(TokenizerConfig.model_validate(deep)).eval()
    initialise_from(deeper, source)
    torch.testing.assert_close(deeper(clips, assignment).clips, before)

    more = deep | {"codebook_size": 20, "code_dim": 12}
    grown = VideoTokenizer(TokenizerConfig.model_validate(more)).eval()
    initialise_from(grown, source)
    assert torch.equal(grown.quantizer.codebook[:8, :8], source.quantizer.codebook)
    assert not grown.quantizer.codebook[:8, 8:].any()
    done = grown(clips, assignment)
    # copies lie beside their code, nearer than half of the way to the next
    assert torch.equal(done.tokens.ids % 8, source(clips, assignment).tokens.ids)
    assert (done.clips - before).abs().max() < 0.1 * before.abs().max()
    assert len(grown.quantizer.codebook.unique(dim=0)) == 20
    torch.testing.assert_close(grown.quantizer.usage.sum(), source.quantizer.usage.sum())

    with pytest.raises(
        ValueError, match="another encoder and decoder and codebook_size and code_dim"
    ):
        initialise_from(source, grown)
    wide = VideoTokenizer(
        TokenizerConfig.model_validate(settings | {"encoder": FORMER | {"width": 32}})
    )
    with pytest.raises(ValueError, match="another encoder; only"):
        initialise_from(wide, source)
