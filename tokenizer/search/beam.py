"""Assignments of longer clips, where m^T candidates are too many: beam and autoregressive search.

The authors leave this as future work ("search autoregressively"); the caches of the exact tree
make it cheap. Hypotheses are extended block by block by every level and pruned to the `width` best
each `span` blocks: width 25, span 1 is a beam; width 1, span 4 fixes the best assignment of four
blocks, then searches the next four given that prefix; width m^T is the exact search.

The number of blocks computed grows linearly with T: at most T · width · m^span a clip.

Shape letters: B batch, T blocks, N hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evatok.core.compute.devices import float64_device
from evatok.core.errors import EvatokError
from tokenizer.coding.incremental import BlockDecoder, BlockEncoder, Past
from tokenizer.model import VideoTokenizer
from tokenizer.qformer import KeyValue
from tokenizer.search.reward import RewardStats, psnr_of_mse, rewards


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        assignment: (B, T) int64 token counts.
        mse: (B,) float32 of the clamped reconstruction, values in [−1, 1].
        reward: (B,) float64; on the CPU, where the clips' device has none.
        num_blocks: blocks that were encoded and decoded, of all clips together.
    """

    assignment: Tensor
    mse: Tensor
    reward: Tensor
    num_blocks: int


@dataclass(frozen=True)
class _Node:
    """One prefix, for the clips in whose beam it is.

    Attributes:
        ranks: of the levels so far.
        rows: (n,) int64, which clips of the batch.
        error: (n,) float32, sum over blocks of the mean squared error.
        encoded: past of these rows.
        decoded: past of these rows.
    """

    ranks: tuple[int, ...]
    rows: Tensor
    error: Tensor
    encoded: Past
    decoded: Past

    def keep(self, mask: Tensor) -> _Node:
        """Only some of the rows, (n,) bool."""
        if bool(mask.all()):
            return self
        return _Node(
            self.ranks,
            self.rows[mask],
            self.error[mask],
            _rows_of(self.encoded, mask),
            _rows_of(self.decoded, mask),
        )


Score = Callable[[_Node], Tensor]


def _rows_of(past: Past, mask: Tensor) -> Past:
    def pick(pairs: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
        return tuple((k[mask], v[mask]) for k, v in pairs)

    return Past(past.num_blocks, pick(past.own), pick(past.references))


@torch.no_grad()
def beam_search(
    model: VideoTokenizer,
    clips: Tensor,
    standard: RewardStats,
    w_q: float,
    width: int,
    span: int = 1,
) -> SearchResult:
    """Search the assignment with the highest proxy reward.

    Prefixes are compared by the reward that they would have if the rest went on likewise: their
    PSNR so far, and their length extrapolated to T blocks.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float32 in [−1, 1], F = 4 T, T at most the model's.
        standard: statistics of the reward, over whole clips of T blocks.
        w_q: weight of quality in [0, 2].
        width: hypotheses kept for each clip.
        span: blocks between prunings.
    """
    if width < 1 or span < 1:
        raise EvatokError(f"width {width} and span {span} must be at least 1")
    num_blocks = clips.shape[2] // model.config.patch[0]
    every = torch.arange(len(clips), device=clips.device)
    nodes = [_Node((), every, torch.zeros(len(clips), device=clips.device), Past(), Past())]
    encoder, decoder = BlockEncoder(model, clips), BlockDecoder(model)
    score = partial(_scores, model, standard, w_q, num_blocks)
    computed = 0
    for t in range(num_blocks):
        nodes = [
            _extended(encoder, decoder, clips, node, rank)
            for node in nodes
            for rank in range(len(model.levels))
        ]
        computed += sum(len(node.rows) for node in nodes)
        last = t + 1 == num_blocks
        if last or (t + 1) % span == 0:
            nodes = _pruned(nodes, score, 1 if last else width, len(clips))
    return _found(model, nodes, score, computed)


def _extended(
    encoder: BlockEncoder, decoder: BlockDecoder, clips: Tensor, node: _Node, rank: int
) -> _Node:
    t, frames = len(node.ranks), encoder.model.config.patch[0]
    ids, encoded = encoder.step(node.encoded, rank, node.rows)
    pixels, decoded = decoder.step(node.decoded, ids)
    target = clips[node.rows, :, t * frames : (t + 1) * frames]
    error = (pixels.float().clamp(-1, 1) - target).square().mean((1, 2, 3, 4))
    return _Node((*node.ranks, rank), node.rows, node.error + error, encoded, decoded)


def _scores(
    model: VideoTokenizer, standard: RewardStats, w_q: float, num_blocks: int, node: _Node
) -> Tensor:
    """(n,) float64 rewards of a prefix, its length extrapolated to `num_blocks`."""
    done = len(node.ranks)
    length = sum(model.levels.values[rank] for rank in node.ranks) * num_blocks / done
    quality = psnr_of_mse(node.error / done)[:, None]
    quality = quality.to(float64_device(quality.device))
    return rewards(quality, quality.new_tensor([length]), standard, w_q)[:, 0]


def _pruned(nodes: Sequence[_Node], score: Score, width: int, num_clips: int) -> list[_Node]:
    """The best `width` prefixes of every clip; among equals the first."""
    device = nodes[0].rows.device
    where = float64_device(device)
    table = torch.full((num_clips, len(nodes)), float("-inf"), dtype=torch.float64, device=where)
    for place, node in enumerate(nodes):
        table[node.rows.to(where), place] = score(node)
    order = table.argsort(dim=1, descending=True, stable=True)[:, :width]
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(1, order, True) & table.isfinite()
    kept = kept.to(device)
    masks = [kept[node.rows, place] for place, node in enumerate(nodes)]
    return [n.keep(mask) for n, mask in zip(nodes, masks, strict=True) if bool(mask.any())]


def _found(
    model: VideoTokenizer, nodes: Sequence[_Node], score: Score, computed: int
) -> SearchResult:
    rows = torch.cat([node.rows for node in nodes])
    back = rows.argsort()
    reward = torch.cat([score(node) for node in nodes])
    counts = [model.levels.tensor[list(node.ranks)].expand(len(node.rows), -1) for node in nodes]
    return SearchResult(
        torch.cat(counts).to(rows.device)[back],
        (torch.cat([node.error for node in nodes]) / len(nodes[0].ranks))[back],
        reward[back.to(reward.device)],
        computed,
    )
