"""The exact prefix tree: every candidate of a clip without computing a block twice.

Block t depends on the clip and on (k₁ … k_t) only, so the m^T assignments are the leaves of a tree
of m + m² + … + m^T blocks (780 instead of 2 500 for m = 5, T = 4). Prefixes whose tokens add up to
the same number have pasts of the same shape: they are continued as one batch, so that a single
clip costs hardly more than its share of a large batch.

Shape letters: B batch, T blocks, M = m^T candidates, n prefixes, R = n · B rows (a clip under a
prefix), N 3D positions of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tokenizer.coding.incremental import BlockDecoder, BlockEncoder, Past
from tokenizer.model import VideoTokenizer
from tokenizer.qformer import KeyValue

# A mean over frames: clamped reconstruction and clip, (R, 3, f, H, W) in [−1, 1] → (R,).
Measure = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Prepares(Protocol):
    """A measure that looks at the real clips once, however many reconstructions there are."""

    def prepare(self, target: Tensor, /) -> Callable[[Tensor], Tensor]:
        """The measure against (B, 3, f, H, W); of R = n · B rows, row r against clip r mod B."""
        ...


# Rows of a step. More gain nothing: 3.9 s a clip at 8 and at 16 rows, 4.4 at 4, 9.3 at 1 (CPU).
ROWS = 16
KEPT_BYTES = 1 << 30  # of keys and values that wait for their turn


@dataclass(frozen=True)
class _Prefixes:
    """Prefixes of one depth and one number of tokens, for the same B clips each.

    Attributes:
        leaves: n places, each the number of the prefix among all of its depth.
        tokens: of each.
        sums: for each measure (n, B), over blocks.
        encoded: R rows, prefix by prefix.
        decoded: likewise.
    """

    leaves: tuple[int, ...]
    tokens: int
    sums: dict[str, Tensor]
    encoded: Past
    decoded: Past


class PrefixTree:
    """Measures every candidate of a batch of clips."""

    def __init__(
        self,
        model: VideoTokenizer,
        clips: Tensor,
        measures: Mapping[str, Measure] | None = None,
        only: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Prepare the walk.

        Args:
            model: in eval mode.
            clips: (B, 3, F, H, W), F = 4 T.
            measures: beside "mse", by name.
            only: (n,) int64, the candidates that are wanted; all if None. What no wanted one
                begins with is not computed, and the numbers of the others are NaN.
            weights: (B, 1, F, H, W) float32 of pixels, by name; each gives a weighted error.
        """
        self.model, self.clips, self.extra = model, clips, dict(measures or {})
        self.encoder, self.decoder = BlockEncoder(model, clips), BlockDecoder(model)
        self.targets = model.patches(clips)  # (B, T·N, patch voxels)
        self.weights = {  # (B, T·N, patch voxels)
            name: model.patches(weight.expand_as(clips)) for name, weight in (weights or {}).items()
        }
        self.num_blocks = clips.shape[2] // model.config.patch[0]
        self.found: dict[str, Tensor] = {}
        # The measures against the real clips of one block: what LPIPS keeps of all blocks together
        # would be gigabytes, and prefixes of one depth come after each other.
        self.prepared: tuple[int, dict[str, Callable[[Tensor], Tensor]]] = (-1, {})
        self.wanted: list[set[int]] | None = None  # prefixes of each depth
        if only is not None:
            base, ends = len(model.levels), range(self.num_blocks - 1, -1, -1)
            self.wanted = [set((only // base**end).tolist()) for end in ends]

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """For "mse", each weight and measure: (B, M) float32, means over the clip's frames."""
        count = self.model.levels.num_candidates(self.num_blocks)
        shape = (count, len(self.clips))
        self.found = {
            name: torch.full(shape, torch.nan, device=self.clips.device)
            for name in ("mse", *self.weights, *self.extra)
        }
        zero = torch.zeros(1, len(self.clips), device=self.clips.device)
        root = _Prefixes((0,), 0, dict.fromkeys(self.found, zero), Past(), Past())
        self._walk([root])
        return {name: (table / self.num_blocks).T for name, table in self.found.items()}

    def _walk(self, groups: list[_Prefixes]) -> None:
        """Everything under these prefixes, which are of one depth."""
        depth = groups[0].encoded.num_blocks
        if depth == self.num_blocks:
            for group in groups:
                for name, sums in group.sums.items():
                    self.found[name][list(group.leaves)] = sums
            return
        children = sum(len(group.leaves) for group in groups) * len(self.model.levels)
        if len(groups) > 1 and children * len(self.clips) * self._row_bytes(depth + 1) > KEPT_BYTES:
            half = len(groups) // 2
            self._walk(groups[:half])
            self._walk(groups[half:])
            return
        last = depth + 1 == self.num_blocks
        born = []
        for group in groups:
            for rank in range(len(self.model.levels)):
                parents = self._parents(group, rank)
                if parents is not None:
                    born.append(self._child(parents, rank, last))
        self._walk(born if last else self._merged(born))

    def _parents(self, group: _Prefixes, rank: int) -> _Prefixes | None:
        """Those of a group that a wanted candidate continues at the level of this rank."""
        if self.wanted is None:
            return group
        base, wanted = len(self.model.levels), self.wanted[group.encoded.num_blocks]
        keep = [i for i, leaf in enumerate(group.leaves) if leaf * base + rank in wanted]
        if len(keep) == len(group.leaves):
            return group
        return _part(group, keep) if keep else None

    def _child(self, group: _Prefixes, rank: int, is_last: bool) -> _Prefixes:
        """The same prefixes, one block longer."""
        n, batch, t = len(group.leaves), len(self.clips), group.encoded.num_blocks
        cells = self.model.num_cells
        rows = None if n == 1 else torch.arange(batch, device=self.clips.device).repeat(n)
        ids, encoded = self.encoder.step(group.encoded, rank, rows)
        patches, decoded = self.decoder.patches(group.decoded, ids)  # (R, N, patch voxels)
        patches = patches.float().clamp(-1, 1).unflatten(0, (n, batch))
        block = slice(t * cells, (t + 1) * cells)
        errors = (patches - self.targets[:, block]).square_()  # (n, B, N, patch voxels)
        sums = {"mse": group.sums["mse"] + errors.mean((2, 3))}
        for name, weight in self.weights.items():
            sums[name] = group.sums[name] + (errors * weight[:, block]).mean((2, 3))
        if self.extra:
            pixels = self.model.pixels(patches.flatten(0, 1))
            for name, measure in self._against(t).items():
                value = measure(pixels).float().unflatten(0, (n, batch))
                sums[name] = group.sums[name] + value
        levels = self.model.levels
        leaves = tuple(leaf * len(levels) + rank for leaf in group.leaves)
        tokens = group.tokens + levels.values[rank]
        if is_last:  # nothing follows: nothing is kept
            encoded, decoded = Past(t + 1), Past(t + 1)
        return _Prefixes(leaves, tokens, sums, encoded, decoded)

    def _against(self, block: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """The further measures of reconstructions (R, 3, f, H, W) of a block."""
        if self.prepared[0] != block:
            frames = self.model.config.patch[0]
            target = self.clips[:, :, block * frames : (block + 1) * frames]
            self.prepared = (-1, {})  # gone before the next is made
            self.prepared = (
                block,
                {
                    name: measure.prepare(target)
                    if isinstance(measure, Prepares)
                    else partial(_repeated, measure, target)
                    for name, measure in self.extra.items()
                },
            )
        return self.prepared[1]

    def _merged(self, groups: Sequence[_Prefixes]) -> list[_Prefixes]:
        """Prefixes of as many tokens together, up to `ROWS` rows."""
        size = max(1, ROWS // len(self.clips))
        waiting: dict[int, list[_Prefixes]] = {}
        out = []
        for group in sorted(groups, key=lambda group: group.tokens):
            alike = waiting.setdefault(group.tokens, [])
            if sum(len(other.leaves) for other in [*alike, group]) > size:
                out += _joined(alike)
                alike.clear()
            alike.append(group)
        for alike in waiting.values():
            out += _joined(alike)
        return out

    def _row_bytes(self, depth: int) -> int:
        """Of keys and values of a row after so many blocks, at most, in float32."""
        encoder, decoder = self.model.config.encoder, self.model.config.decoder
        tokens, cells = self.model.levels.values[-1] * depth, self.model.num_cells * depth
        numbers = encoder.layers * encoder.width * tokens
        numbers += decoder.layers * decoder.width * (tokens + cells)
        return 2 * 4 * numbers


def _repeated(measure: Measure, target: Tensor, made: Tensor) -> Tensor:
    """A measure that prepares nothing: every row is given its clip."""
    return measure(made, target.repeat(len(made) // len(target), 1, 1, 1, 1))


def _joined(groups: Sequence[_Prefixes]) -> list[_Prefixes]:
    """One group of all, or none of none."""
    if len(groups) < 2:
        return list(groups)

    def past(pasts: Sequence[Past]) -> Past:
        own = [_stack(pairs) for pairs in zip(*(one.own for one in pasts), strict=True)]
        references = [_stack(p) for p in zip(*(one.references for one in pasts), strict=True)]
        return Past(pasts[0].num_blocks, tuple(own), tuple(references))

    sums = {name: torch.cat([g.sums[name] for g in groups]) for name in groups[0].sums}
    return [
        _Prefixes(
            tuple(leaf for group in groups for leaf in group.leaves),
            groups[0].tokens,
            sums,
            past([group.encoded for group in groups]),
            past([group.decoded for group in groups]),
        )
    ]


def _part(group: _Prefixes, keep: list[int]) -> _Prefixes:
    """Some of the prefixes of a group."""
    count = len(group.leaves)
    index = torch.tensor(keep, device=next(iter(group.sums.values())).device)

    def rows(pairs: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
        return tuple(
            tuple(x.unflatten(0, (count, -1))[index].flatten(0, 1) for x in pair)  # type: ignore[misc]
            for pair in pairs
        )

    def past(whole: Past) -> Past:
        return Past(whole.num_blocks, rows(whole.own), rows(whole.references))

    return _Prefixes(
        tuple(group.leaves[i] for i in keep),
        group.tokens,
        {name: sums[index] for name, sums in group.sums.items()},
        past(group.encoded),
        past(group.decoded),
    )


def _stack(pairs: Sequence[KeyValue]) -> KeyValue:
    return torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs])
