"""Held-out clips of a search, with the quality of every candidate: what routers are judged on.

Shape letters: N clips, T blocks, M = m^T candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evatok.core.compute.devices import device_of
from evatok.measure.clip_sets import ClipSet, clip_set
from evatok.workflows.search import SearchConfig
from tokenizer.assignment import Levels
from tokenizer.router import Router
from tokenizer.search.reward import Quality, RewardStats, reward_stats, rewards
from tokenizer.search.table import check_clips, read_table
from video.dataset import ClipSampler


@dataclass(frozen=True)
class SearchedClips:
    """Held-out clips of one set, with the quality of every candidate.

    Attributes:
        name: of the set.
        real: the clips.
        quality: (N, M) float32 of the reward, higher is better, proxy tokenizer.
        measures: (N, M) float32 of all that the search recorded, by name: "psnr" and
            "moving_psnr" in dB, and perceptual distances.
        standard: statistics of the training table.
        levels: of the proxy.
        num_blocks: T.
    """

    name: str
    real: ClipSet
    quality: Tensor
    measures: dict[str, Tensor]
    standard: RewardStats
    levels: Levels
    num_blocks: int

    @property
    def lengths(self) -> Tensor:
        """(M,) int64 tokens of each candidate."""
        return self.levels.candidates(self.num_blocks).sum(1)

    def rewards(self, w_q: float) -> Tensor:
        """(N, M) float32."""
        return rewards(self.quality, self.lengths, self.standard, w_q).float()

    @torch.no_grad()
    def logits(self, router: Router, w_q: float | None = None) -> Tensor:
        """(N, M) of a router, at a w_q if it takes one."""
        parts = []
        for clips in self.real.batches():
            there = clips.to(device_of(router))
            wanted = None if w_q is None else torch.full((len(clips),), w_q, device=there.device)
            parts.append(router(there, wanted).float().cpu())
        return torch.cat(parts)


def searched_sets(
    search: SearchConfig,
    directory: Path,
    levels: Levels,
    quality: Quality,
    training: Path | None = None,
) -> list[SearchedClips]:
    """The held-out clips of a search, a set for each source.

    Args:
        search: its settings.
        directory: of its tables, with train/ and test/.
        levels: of the tokenizer that searched.
        quality: of the reward that the router learned.
        training: folder of the search that the routers learned from, if it is another one: its
            statistics make the reward.
    """
    table = read_table((training or directory) / "train").quality(quality)
    held = read_table(directory / "test", whole=True)
    num_blocks = round(np.log(table.shape[1]) / np.log(len(levels)))
    standard = reward_stats(table, levels.candidates(num_blocks).sum(1))
    sampler = ClipSampler(search.data, "test")
    drawn = sampler.eval_clips(len(held.batch_rows))  # the same draw as that search
    numbers = [batch * search.batch_size + row for batch, row in held.batch_rows]
    windows = [drawn[number % len(drawn)] for number in numbers]  # beyond: the names will differ
    check_clips(directory / "test", held.names, [sampler.name(window) for window in windows])
    sets = []
    for number, source in enumerate(sampler.sources):
        rows = [i for i, window in enumerate(windows) if window.source == number]
        if rows:
            real = clip_set(sampler, [windows[i] for i in rows], source.root.name)
            measures = {"psnr": held.quality()[rows]}
            for column, table in held.measures.items():
                if column == "moving_mse":
                    measures["moving_psnr"] = held.quality("moving_psnr")[rows]
                elif column != "mse":
                    measures[column] = table[rows]
            of_reward = held.quality(quality)[rows]
            sets.append(
                SearchedClips(real.name, real, of_reward, measures, standard, levels, num_blocks)
            )
    return sets
