"""Every candidate of every clip: by the exact prefix tree or by brute force.

The tree is `tokenizer.search.tree`; brute force is kept as its slow twin.

Shape letters: B batch, T blocks, M = m^T candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from evaluation.metrics.quality import moving
from evatok.core.errors import EvatokError
from tokenizer.model import VideoTokenizer
from tokenizer.search.tree import Measure, PrefixTree

Method = Literal["tree", "brute"]


@torch.no_grad()
def candidate_errors(model: VideoTokenizer, clips: Tensor, method: Method = "tree") -> Tensor:
    """Mean squared error of every candidate assignment.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float32 in [−1, 1], whole clips.
        method: "tree" or "brute"; equal up to rounding.

    Returns:
        (B, M) float32, error of clamped reconstructions, values in [−1, 1].
    """
    return candidate_measures(model, clips, {}, method)["mse"]


@torch.no_grad()
def candidate_measures(
    model: VideoTokenizer,
    clips: Tensor,
    measures: Mapping[str, Measure],
    method: Method = "tree",
    weights: Mapping[str, Tensor] | None = None,
    only: Tensor | None = None,
) -> dict[str, Tensor]:
    """As `candidate_errors`, with further measures of quality that are means over frames.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float32 in [−1, 1], whole clips.
        measures: such as LPIPS, by name.
        method: "tree" or "brute"; equal up to rounding.
        weights: (B, 1, F, H, W) float32 of pixels, by name: weighted squared errors.
        only: (n,) int64, the candidates that are wanted; all if None.

    Returns:
        (B, M) float32 for "mse", each of the weights and each of the measures; NaN for candidates
        that are not wanted.
    """
    weights = weights or {}
    if method == "tree":
        return PrefixTree(model, clips, measures, only, weights).measure()
    out: dict[str, list[Tensor]] = {name: [] for name in ("mse", *weights, *measures)}
    every = model.levels.candidates(clips.shape[2] // model.config.patch[0])
    wanted = None if only is None else set(only.tolist())
    for number, candidate in enumerate(every):
        if wanted is not None and number not in wanted:
            for column in out.values():
                column.append(clips.new_full((len(clips),), torch.nan))
            continue
        result = model(clips, candidate.expand(len(clips), -1).to(clips.device))
        made = result.clips.float().clamp(-1, 1)
        errors = (made - clips).square()
        out["mse"].append(errors.mean((1, 2, 3, 4)))
        for name, weight in weights.items():
            out[name].append((errors * weight).mean((1, 2, 3, 4)))
        for name, measure in measures.items():
            out[name].append(measure(made, clips).float())
    return {name: torch.stack(columns, 1) for name, columns in out.items()}


def drawn_candidates(total: int, count: int | None, seed: int, batch: int) -> Tensor | None:
    """The candidates that a batch is searched for: each set of `count` is as likely as another.

    Args:
        total: M.
        count: how many; all if None.
        seed: of the search.
        batch: its number.

    Returns:
        (count,) int64, sorted and all different, or None for all.

    Raises:
        EvatokError: there are not so many.
    """
    if count is None:
        return None
    if count > total:
        raise EvatokError(f"candidates: {count} is more than the {total} of this tokenizer")
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    return torch.randperm(total, generator=generator)[:count].sort().values


def motion_weights(clips: Tensor) -> Tensor:
    """Pixel weights that make a mean squared error that of the pixels where a clip moves.

    Args:
        clips: (B, 3, F, H, W) float32 in [−1, 1].

    Returns:
        (B, 1, F, H, W) float32 with mean 1: the same for all pixels that move
        (`evaluation.metrics.quality.moving`), 0 for the others; 1 for all of a clip in which none
        moves.
    """
    mask = moving(clips)[:, None].float()
    share = mask.mean((1, 2, 3, 4), keepdim=True)
    return torch.where(share > 0, mask / share, 1.0)


def model_hash(model: torch.nn.Module) -> str:
    """First 16 hex digits of the sha256 over all weights, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
