"""Training batches packed to a token budget, without padding.

In each epoch every clip comes once, under its class, its text or its first frames. A batch is a
pure function of the step, so that a resumed run needs no state.

Shape letters: L packed tokens, N sequences or clips, P targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from generator.conditions import Condition
from generator.data.token_set import TokenSet


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, and what should follow where.

    Attributes:
        ids: (L,) int64, every sequence without its last token.
        cu_seqlens: (N + 1,) int32.
        target_positions: (P,) int64 in [0, L), where the next token counts: everywhere but inside
            conditions.
        targets: (P,) int64, that next token.
        conditions: (N,) int64, the `Condition` of each sequence.
    """

    ids: Tensor
    cu_seqlens: Tensor
    target_positions: Tensor
    targets: Tensor
    conditions: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> PackedBatch:
        """The same on another device."""
        tensors = (self.ids, self.cu_seqlens, self.target_positions, self.targets, self.conditions)
        return PackedBatch(*(x.to(device, non_blocking=non_blocking) for x in tensors))

    def idle(self) -> PackedBatch:
        """The first sequence with no targets: what a process computes that has none of its own."""
        none = self.targets.new_zeros(0)
        ids, ends = self.ids[: int(self.cu_seqlens[1])], self.cu_seqlens[:2]
        return PackedBatch(ids, ends, none, none, self.conditions[:1])

    def split(self, parts: int) -> list[PackedBatch]:
        """Cut between sequences into parts of about equally many tokens.

        Where there are fewer sequences, the last parts have one that nothing is learned from.
        """
        count = len(self.cu_seqlens) - 1
        if count < parts:
            return [*self.split(count), *[self.idle()] * (parts - count)]
        ends = self.cu_seqlens[1:].tolist()
        out, first = [], 0
        for part in range(parts):
            goal = ends[-1] * (part + 1) / parts
            # at least one sequence here, and one left for each part to come
            last = max(first + 1, sum(end <= goal for end in ends))
            last = count if part == parts - 1 else min(last, count - (parts - 1 - part))
            begin, end = int(self.cu_seqlens[first]), ends[last - 1]
            inside = (self.target_positions >= begin) & (self.target_positions < end)
            out.append(
                PackedBatch(
                    self.ids[begin:end],
                    self.cu_seqlens[first : last + 1] - begin,
                    self.target_positions[inside] - begin,
                    self.targets[inside],
                    self.conditions[first:last],
                )
            )
            first = last
        return out


def pack(
    sequences: list[np.ndarray], condition_lengths: list[int], conditions: list[Condition]
) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        sequences: tokens of each, its condition first.
        condition_lengths: tokens of each condition; they are read but not predicted.
        conditions: what each condition is.
    """
    inputs = [sequence[:-1] for sequence in sequences]
    lengths = torch.tensor([len(part) for part in inputs])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    following = torch.from_numpy(np.concatenate([s[1:] for s in sequences]).astype(np.int64))
    starts = (cu_seqlens[:-1] + torch.tensor(condition_lengths) - 1).tolist()
    ends = cu_seqlens[1:].tolist()
    target_positions = torch.cat([torch.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return PackedBatch(
        torch.from_numpy(np.concatenate(inputs).astype(np.int64)),
        cu_seqlens,
        target_positions,
        following[target_positions],
        torch.tensor(conditions, dtype=torch.int64),
    )


Epoch = tuple[np.ndarray, np.ndarray, np.ndarray]


@lru_cache(maxsize=4)
def _epoch(
    seed: int, epoch: int, count: int, shares: tuple[float, float], label_dropout: float
) -> Epoch:
    """Clips in order, their conditions, which of these are null; each (N,)."""
    random = np.random.default_rng([seed, epoch])
    order, draw = random.permutation(count), random.random(count)
    frame_share, text_share = shares
    is_frames = draw < frame_share
    is_null = ~is_frames & (random.random(count) < label_dropout)
    # A text that is dropped leaves the null token, which is of the kind of classes.
    is_text = ~is_frames & ~is_null & (draw < frame_share + text_share)
    return order, is_frames * Condition.FRAMES + is_text * Condition.TEXT, is_null


class Packer:
    """Endless epochs over a set of tokens, cut into batches of at most so many tokens.

    An epoch is a seeded permutation of all clips; a seeded draw gives each its frames, its text or
    its class, the last two now and then replaced by the null condition. Batches run across epoch
    ends, so that all are full.
    """

    def __init__(
        self,
        tokens: TokenSet,
        budget: int,
        seed: int,
        frame_share: float = 0.0,
        label_dropout: float = 0.1,
        text_share: float = 0.0,
    ) -> None:
        """Plan batches.

        Args:
            tokens: what to pack.
            budget: most tokens of a step, over all ranks.
            seed: of the order and of the draws.
            frame_share: share of frame-conditional sequences.
            label_dropout: share of the others whose class or text becomes null.
            text_share: share of text-conditional sequences; what is left has its class.

        Raises:
            EvatokError: the longest sequence alone is over the budget, or shares over 1.
        """
        self.tokens, self.budget, self.seed = tokens, budget, seed
        if frame_share + text_share > 1:
            raise EvatokError(f"shares of frames {frame_share} and text {text_share} are over 1")
        self.shares, self.label_dropout = (frame_share, text_share), label_dropout
        # the last token of a sequence is only predicted, never read
        used = [Condition.CLASS] * (frame_share + text_share < 1)
        used += [Condition.FRAMES] * (frame_share > 0) + [Condition.TEXT] * (text_share > 0)
        self._lengths = {condition: tokens.lengths(condition) - 1 for condition in used}
        longest = max(int(lengths.max()) for lengths in self._lengths.values())
        if budget < longest:
            raise EvatokError(f"a budget of {budget} tokens does not hold a sequence of {longest}")
        self._cuts = [0]  # where batches begin in the stream of all epochs
        self._tail = np.zeros(0, np.int64)  # lengths after the last cut
        self._planned = 0  # epochs

    def _epoch(self, epoch: int) -> Epoch:
        return _epoch(self.seed, epoch, len(self.tokens), self.shares, self.label_dropout)

    def _plan(self) -> None:
        """Cut one more epoch."""
        order, conditions, _ = self._epoch(self._planned)
        lengths = np.zeros(len(order), np.int64)
        for condition, of_clips in self._lengths.items():
            lengths = np.where(conditions == condition, of_clips[order], lengths)
        lengths = np.concatenate([self._tail, lengths])
        ends = lengths.cumsum()
        first, before = 0, 0
        # a batch is complete when the next sequence does not fit
        while (last := int(np.searchsorted(ends, before + self.budget, "right"))) < len(ends):
            self._cuts.append(self._cuts[-1] + last - first)
            first, before = last, int(ends[last - 1])
        self._tail = lengths[first:]
        self._planned += 1

    def items(self, step: int) -> list[tuple[int, Condition, bool]]:
        """(clip, condition, is_null) of each sequence of a step, over all ranks."""
        while len(self._cuts) < step + 2:
            self._plan()
        out = []
        first, last = self._cuts[step], self._cuts[step + 1]
        count = len(self.tokens)
        for epoch in range(first // count, (last - 1) // count + 1):
            inside = slice(max(0, first - epoch * count), min(count, last - epoch * count))
            clips, conditions, is_null = (column[inside].tolist() for column in self._epoch(epoch))
            out += zip(clips, map(Condition, conditions), is_null, strict=True)
        return out

    def batch(self, step: int, rank: int = 0, world: int = 1) -> PackedBatch:
        """One rank's share of a step: a pure function of its arguments.

        Where a step has fewer sequences than ranks, some get one without targets.
        """
        items = self.items(step)
        lengths = [int(self._lengths[condition][clip]) for clip, condition, _ in items]
        # the longest first, each to the rank that has least: ranks end up nearly equal
        loads, shares = [0] * world, [[] for _ in range(world)]
        for index in sorted(range(len(items)), key=lambda i: -lengths[i]):
            target = loads.index(min(loads))
            loads[target] += lengths[index]
            shares[target].append(index)
        mine = shares[rank] or [min(range(len(items)), key=lengths.__getitem__)]
        is_idle = not shares[rank]
        sequences, lengths, conditions = [], [], []
        for clip, condition, is_null in (items[index] for index in mine):
            sequence = np.array(self.tokens.sequence(clip, condition))
            if is_null:
                sequence[0] = self.tokens.vocabulary.null
            sequences.append(sequence)
            lengths.append(self.tokens.condition_length(clip, condition))
            conditions.append(condition)
        batch = pack(sequences, lengths, conditions)
        return batch.idle() if is_idle else batch
