"""The tokenizer: causality, packing, ids alone, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenizer.model import VideoTokenizer, resample_matrix
from tokenizer.tokens import Tokens


@torch.no_grad()
def test_packed_equals_one_by_one(model: VideoTokenizer, clips: Tensor, assignment: Tensor) -> None:
    packed = model(clips, assignment)
    for i in range(len(clips)):
        alone = model(clips[i : i + 1], assignment[i : i + 1])
        torch.testing.assert_close(alone.clips[0], packed.clips[i], atol=1e-5, rtol=1e-5)
        first, last = packed.tokens.cu_seqlens[i : i + 2].tolist()
        assert torch.equal(alone.tokens.ids, packed.tokens.ids[first:last])


def test_gradients_of_packed_equal_those_of_one_by_one(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor
) -> None:
    def gradients(rows: list[slice]) -> list[Tensor]:
        model.zero_grad()
        for row in rows:
            model(clips[row], assignment[row]).clips.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together = gradients([slice(None)])
    alone = gradients([slice(i, i + 1) for i in range(len(clips))])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max() + 1), rtol=1e-4)


@torch.no_grad()
def test_order_in_the_batch_does_not_matter(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor
) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    out, shuffled = model(clips, assignment), model(clips[order], assignment[order])
    torch.testing.assert_close(shuffled.clips, out.clips[order], atol=1e-5, rtol=1e-5)
    blocks = out.tokens.blocks()
    for place, i in enumerate(order.tolist()):
        for a, b in zip(shuffled.tokens.blocks()[place], blocks[i], strict=True):
            assert torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2])
def test_later_frames_and_levels_change_nothing_earlier(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, block: int
) -> None:
    changed_clips, changed_levels = clips.clone(), assignment.clone()
    changed_clips[:, :, 4 * block :] = -changed_clips[:, :, 4 * block :]
    changed_levels[:, block:] = torch.tensor([4, 1])[: 3 - block]
    before, after = model(clips, assignment), model(changed_clips, changed_levels)
    torch.testing.assert_close(
        after.clips[:, :, : 4 * block], before.clips[:, :, : 4 * block], atol=1e-5, rtol=0
    )
    assert not torch.allclose(after.clips[:, :, 4 * block :], before.clips[:, :, 4 * block :])
    pairs = zip(before.tokens.blocks(), after.tokens.blocks(), strict=True)
    for one, other in pairs:
        for t in range(block):
            assert torch.equal(one[t], other[t])


@torch.no_grad()
def test_a_prefix_of_the_frames_is_a_clip(model: VideoTokenizer, clips: Tensor) -> None:
    levels = torch.tensor([[8, 2]]).expand(5, -1)
    whole = model.encode(clips, torch.cat([levels, levels[:, :1]], 1)).blocks()
    part = model.encode(clips[:, :, :8], levels)
    for a, b in zip(part.blocks(), whole, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert model.decode(part).shape == (5, 3, 8, 16, 16)


@torch.no_grad()
def test_ids_alone_decode_to_the_forward_pass(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor
) -> None:
    result = model(clips, assignment)
    tokens = model.encode(clips, assignment)
    assert torch.equal(tokens.ids, result.tokens.ids)
    assert tokens.ids.min() >= 0 and tokens.ids.max() < 32
    torch.testing.assert_close(model.decode(tokens), result.clips, atol=1e-5, rtol=1e-5)


def test_patches_and_pixels_are_inverse(model: VideoTokenizer, clips: Tensor) -> None:
    assert torch.equal(model.pixels(model.patches(clips)), clips)


def test_saved_and_loaded_it_is_the_same(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    again = VideoTokenizer.from_pretrained(tmp_path).eval()
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(clips, assignment).clips, model(clips, assignment).clips)


def test_resampling_keeps_constants() -> None:
    for target in [(2, 2), (4, 2), (8, 8), (16, 8)]:
        matrix = resample_matrix((8, 8), target)
        assert matrix.shape == (target[0] * target[1], 64)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))


def test_what_does_not_fit_is_refused(model: VideoTokenizer, clips: Tensor) -> None:
    with pytest.raises(ValueError, match="are not"):
        model(clips[..., :8], torch.ones(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="10 frames are not 1 to 3 blocks of 4"):
        model(clips[:, :, :10], torch.ones(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="does not fit 5 clips of 3 blocks"):
        model(clips, torch.ones(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="are not levels"):
        model(clips, torch.full((5, 3), 3))
    with pytest.raises(ValueError, match="do not fit"):
        Tokens(torch.zeros(3, dtype=torch.int64), torch.tensor([[2, 2]]))
    with pytest.raises(ValueError, match=r"ids: give a tensor of int64, not torch.float32"):
        Tokens(torch.zeros(4), torch.tensor([[2, 2]]))
    with pytest.raises(ValueError, match="assignment: give a tensor of int64, not ndarray"):
        Tokens(torch.zeros(4, dtype=torch.int64), np.array([[2, 2]]))  # type: ignore[arg-type]


def test_tokens_survive_taking_apart(model: VideoTokenizer, clips: Tensor) -> None:
    tokens = model.encode(clips, torch.tensor([[1, 8, 2]]).expand(5, -1))
    again = Tokens.from_blocks(tokens.blocks())
    assert torch.equal(again.ids, tokens.ids) and torch.equal(again.assignment, tokens.assignment)
    both = Tokens.cat([tokens, again])
    assert both.cu_seqlens.tolist() == list(range(0, 111, 11))


def test_token_positions_start_without_effect_then_tell_tokens_apart(
    model: VideoTokenizer, clips: torch.Tensor, assignment: torch.Tensor
) -> None:
    plain = model
    model = VideoTokenizer(plain.config.model_copy(update={"token_positions": True})).eval()
    extra = sum(model.levels.values) * (24 + 32)
    count = [sum(p.numel() for p in m.parameters()) for m in (plain, model)]
    assert count[1] - count[0] == extra
    with torch.no_grad():
        model.load_state_dict(plain.state_dict(), strict=False)
        table = model.encoder_places.token_position, model.decoder_places.token_position
        for parameter in table:
            assert parameter is not None
            parameter.zero_()
        torch.testing.assert_close(
            model(clips, assignment).clips, plain(clips, assignment).clips, atol=0, rtol=0
        )
        assert table[0] is not None
        table[0][1:3] = torch.arange(2)[:, None] + 1.0  # the level 2: its first and second token
        places = model.encoder_places.of_block(0, 1) - plain.encoder_places.of_block(0, 1)
        torch.testing.assert_close(places, table[0][1:3])
        others = model.encoder_places.of_block(0, 2) - plain.encoder_places.of_block(0, 2)
        assert not others.any()
