"""The prefix tree against brute force, streams, and the table on disk."""

from __future__ import annotations

import random
from functools import reduce
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from evaluation.metrics.quality import moving_psnr
from evaluation.perceptual.distance import FeatureDistance
from evatok.core.errors import EvatokError
from tokenizer.coding.incremental import BlockDecoder, BlockEncoder, Past
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import (
    candidate_errors,
    candidate_measures,
    drawn_candidates,
    motion_weights,
)
from tokenizer.search.reward import (
    TableMoments,
    best_uniform,
    percentile,
    psnr_of_mse,
    reward_stats,
    rewards,
)
from tokenizer.search.table import check_clips, curate, read_table
from tokenizer.search.tree import PrefixTree


def test_tree_equals_brute_force(model: VideoTokenizer, clips: Tensor) -> None:
    tree = candidate_errors(model, clips, "tree")
    brute = candidate_errors(model, clips, "brute")
    assert tree.shape == (5, 64)
    torch.testing.assert_close(tree, brute, rtol=1e-4, atol=0)
    assert torch.equal(tree.argmin(1), brute.argmin(1))


@pytest.mark.parametrize("kept", [1 << 30, 0])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_any_batching_of_the_tree(
    model: VideoTokenizer, clips: Tensor, rows: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a step and memory change nothing; a second measure goes along."""
    monkeypatch.setattr("tokenizer.search.tree.ROWS", rows)
    monkeypatch.setattr("tokenizer.search.tree.KEPT_BYTES", kept)

    def worst(made: Tensor, clip: Tensor) -> Tensor:  # a mean over frames
        return (made - clip).abs().amax((1, 3, 4)).mean(1)

    tree = candidate_measures(model, clips[:2], {"worst": worst}, "tree")
    brute = candidate_measures(model, clips[:2], {"worst": worst}, "brute")
    assert tree.keys() == brute.keys() == {"mse", "worst"}
    for name, table in tree.items():
        torch.testing.assert_close(table, brute[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["tree", "brute"])
def test_some_candidates_only(
    model: VideoTokenizer, clips: Tensor, method: Literal["tree", "brute"]
) -> None:
    only = drawn_candidates(64, 7, 3, 1)
    assert only is not None and len(set(only.tolist())) == 7
    some = candidate_measures(model, clips, {}, method, only=only)["mse"]
    assert some.isnan().sum() == 5 * (64 - 7)
    torch.testing.assert_close(
        some[:, only], candidate_errors(model, clips)[:, only], rtol=1e-4, atol=0
    )


def test_candidates_are_drawn_evenly_and_again() -> None:
    drawn = [drawn_candidates(64, 16, 0, batch) for batch in range(400)]
    counts = torch.cat([part for part in drawn if part is not None]).bincount(minlength=64)
    assert counts.min() > 60 and counts.max() < 140  # 100 each, deviation 9
    again = drawn_candidates(64, 16, 0, 7)
    assert again is not None and torch.equal(again, torch.as_tensor(drawn[7]))
    assert drawn_candidates(64, None, 0, 0) is None
    with pytest.raises(EvatokError, match="candidates: 65 is more than the 64"):
        drawn_candidates(64, 65, 0, 0)


def test_real_clips_are_looked_at_once_a_block(model: VideoTokenizer, clips: Tensor) -> None:
    """A network that sees each block of a clip once, not at every node; the same distances."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 3)
            self.seen: list[Tensor] = []

        def forward(self, frames: Tensor) -> list[Tensor]:
            self.seen.append(frames)
            return [self.layer(frames)]

    net = Net()
    distance = FeatureDistance("toy", "", net)
    tree = candidate_measures(model, clips[:2], {"toy": distance}, "tree")["toy"]
    real = clips[:2].transpose(1, 2).flatten(0, 1)
    passes = sum(int((frames == picture).all((1, 2, 3)).sum())
                 for frames in net.seen for picture in real)  # fmt: skip
    assert passes == len(real) == 2 * 12  # not 84 nodes of 8 frames
    brute = candidate_measures(model, clips[:2], {"toy": distance}, "brute")["toy"]
    torch.testing.assert_close(tree, brute, rtol=1e-4, atol=1e-6)


def test_tree_is_brute_force_in_bf16(model: VideoTokenizer, clips: Tensor) -> None:
    """Both choose codes in float32 from the same bf16 activations."""
    with torch.autocast("cpu", torch.bfloat16):
        tree = candidate_errors(model, clips, "tree")
        brute = candidate_errors(model, clips, "brute")
    torch.testing.assert_close(tree, brute, rtol=0, atol=1e-5)


def partly_moving(clips: Tensor) -> Tensor:
    """Two clips that stand still, but for the left edge of the first one."""
    some = clips[:2, :, :1].expand_as(clips[:2]).clone()
    some[0, ..., :2] = clips[0, ..., :2]
    return some


@torch.no_grad()
def test_the_error_where_clips_move(model: VideoTokenizer, clips: Tensor) -> None:
    """One way to weigh pixels gives the table, the measure and the tree's sums of blocks."""
    some = partly_moving(clips)
    weights = motion_weights(some)
    torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(2))
    assert (weights[1] == 1).all() and (weights[0] == 0).any()
    tree = candidate_measures(model, some, {}, "tree", {"moving_mse": weights})
    brute = candidate_measures(model, some, {}, "brute", {"moving_mse": weights})
    assert tree.keys() == brute.keys() == {"mse", "moving_mse"}
    torch.testing.assert_close(tree["moving_mse"], brute["moving_mse"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tree["moving_mse"][1], tree["mse"][1], rtol=1e-4, atol=1e-6)
    candidate = model.levels.candidates(model.num_blocks)[37]
    made = model(some[:1], candidate[None]).clips.clamp(-1, 1)
    expected = float(moving_psnr(made, some[:1]))
    assert float(psnr_of_mse(tree["moving_mse"][0, 37])) == pytest.approx(expected, abs=1e-3)


def test_a_table_with_motion_gives_its_psnr(
    model: VideoTokenizer, clips: Tensor, tmp_path: Path
) -> None:
    def batch(number: int) -> tuple[Tensor, list[str]]:
        return partly_moving(clips), ["a", "b"]

    list(curate(model, batch, 1, tmp_path, with_motion=True))
    table = read_table(tmp_path)
    assert torch.equal(table.quality("moving_psnr"), psnr_of_mse(table.measures["moving_mse"]))
    assert not torch.equal(table.quality("moving_psnr"), table.quality())
    list(curate(model, batch, 1, tmp_path / "without"))
    with pytest.raises(ValueError, match=r"not moving_mse: search with `quality: \[moving_mse\]`"):
        read_table(tmp_path / "without").quality("moving_psnr")


def test_only_some_candidates(model: VideoTokenizer, clips: Tensor) -> None:
    whole = PrefixTree(model, clips[:2]).measure()["mse"]
    only = torch.tensor([0, 7, 8, 33, 34, 63])
    found = PrefixTree(model, clips[:2], only=only).measure()["mse"]
    torch.testing.assert_close(found[:, only], whole[:, only], rtol=1e-4, atol=0)
    assert int(found.isfinite().sum()) == 2 * len(only)


@torch.no_grad()
def test_a_stream_equals_the_whole(model: VideoTokenizer, clips: Tensor) -> None:
    assignment = torch.tensor([[8, 1, 4]]).expand(5, -1)
    whole = model(clips, assignment)
    encoder, decoder = BlockEncoder(model, clips), BlockDecoder(model)
    encoded, decoded, frames = Past(), Past(), []
    for t, rank in enumerate((3, 0, 2)):
        ids, encoded = encoder.step(encoded, rank)
        for i, blocks in enumerate(whole.tokens.blocks()):
            assert torch.equal(ids[i], blocks[t])
        pixels, decoded = decoder.step(decoded, ids)
        frames.append(pixels)
    torch.testing.assert_close(torch.cat(frames, 2), whole.clips, atol=1e-5, rtol=1e-5)


def test_a_killed_search_resumes_to_the_same_table(
    model: VideoTokenizer, clips: Tensor, tmp_path: Path
) -> None:
    def batch(number: int) -> tuple[Tensor, list[str]]:
        return clips[number : number + 2], [f"clip {number}", f"clip {number + 1}"]

    assert list(curate(model, batch, 2, tmp_path / "whole")) == [2, 4]
    next(iter(curate(model, batch, 2, tmp_path / "parts")))  # stopped after one shard
    (tmp_path / "parts" / "table-00001.partial").write_bytes(b"half a file")
    assert list(curate(model, batch, 2, tmp_path / "parts")) == [2, 4]
    whole, parts = read_table(tmp_path / "whole"), read_table(tmp_path / "parts")
    assert torch.equal(whole.quality(), parts.quality())
    assert (whole.names, whole.batch_rows) == (parts.names, parts.batch_rows)
    assert whole.names == ["clip 0", "clip 1", "clip 1", "clip 2"]
    with pytest.raises(ValueError, match="has mse, not lpips"):
        whole.quality("lpips")
    with torch.no_grad():
        model.patch_head.bias.add_(1)
    with pytest.raises(ValueError, match="was made with model"):
        list(curate(model, batch, 2, tmp_path / "parts"))
    with pytest.raises(FileNotFoundError, match="evatok search"):
        read_table(tmp_path / "nothing")


def test_rewards_follow_the_paper(model: VideoTokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    mse = torch.rand(6, 64, generator=generator) * 0.1
    lengths = model.levels.candidates(3).sum(1)
    quality = psnr_of_mse(mse)
    standard = reward_stats(quality, lengths)
    for w_q in (0.4, 1.2, 2.0):
        table = rewards(quality, lengths, standard, w_q)
        assert abs(float(table.mean())) < 1e-9  # both parts are standardised
    assert torch.equal(rewards(quality, lengths, standard, 2.0).argmax(1), quality.argmax(1))
    assert (lengths[rewards(quality, lengths, standard, 0.0).argmax(1)] == 3).all()
    table = rewards(quality, lengths, standard, 1.2)
    assert percentile(table, table.argmax(1)) == pytest.approx(100)
    assert percentile(table, table.argmin(1)) == pytest.approx(0)
    level, score = best_uniform(table, model.levels, 3)
    assert level in model.levels.values and 0 <= score <= 100
    with pytest.raises(ValueError, match="outside"):
        rewards(quality, lengths, standard, 2.1)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_statistics_merge(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts, in any order, as of the whole; whatever the size of the parts of a table."""
    table = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) * 3 + 25
    pieces = [TableMoments.from_values(part) for part in table.tensor_split(parts)]
    random.Random(0).shuffle(pieces)
    whole = reduce(TableMoments.merged, pieces)
    assert whole.count == 360
    assert whole.mean == pytest.approx(float(table.double().mean()), rel=1e-12)
    assert whole.std == pytest.approx(float(table.double().std(correction=0)), rel=1e-12)
    once = reward_stats(table, torch.arange(9))
    monkeypatch.setattr("tokenizer.search.reward.ROWS", 7)
    again = reward_stats(table, torch.arange(9))
    assert again.mean_quality == pytest.approx(once.mean_quality, rel=1e-12)
    assert again.std_quality == pytest.approx(once.std_quality, rel=1e-12)


def test_psnr_of_known_errors() -> None:
    got = psnr_of_mse(torch.tensor([4.0, 0.04, 0.0]))
    torch.testing.assert_close(got, torch.tensor([0.0, 20.0, 100.0]))


def test_clips_of_another_draw_are_refused(tmp_path: Path) -> None:
    check_clips(tmp_path, ["a#0", "b#4"], ["a#0", "b#4"])
    with pytest.raises(ValueError, match=r"unfinished or of other settings: its clip b#4 .* b#0"):
        check_clips(tmp_path, ["a#0", "b#4"], ["a#0", "b#0"])
