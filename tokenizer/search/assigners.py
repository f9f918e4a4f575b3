"""Ways to choose the assignments of clips, behind one interface (method sections 4 and 5).

| spec | chooses |
| --- | --- |
| `uniform:32` | the same level for every block of every clip |
| `32,16,8,8` | these levels, for every clip |
| `router` | what the router takes for best, in one pass |
| `router:1.4` | likewise with w_q = 1.4, by a router with w_q as an input |
| `best`, `best:1.4` | the highest proxy reward of all candidates (exact search: dear) |
| `threshold:24.5` | the shortest that reaches this PSNR in dB, else the longest (dear) |
| `threshold:lpips:0.2` | likewise by another quality of the reward, such as LPIPS at most 0.2 |

The last two are ElasticTok's rule. "Dear" ones evaluate every candidate of every clip.

Shape letters: B batch, T blocks, M = m^T candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from evaluation.perceptual.load import load_perceptual
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels, parse_assignment
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.candidates import candidate_errors, candidate_measures, motion_weights
from tokenizer.search.long_clips import slide
from tokenizer.search.reward import Quality, RewardStats, psnr_of_mse, rewards

# clips (B, 3, F, H, W) in [−1, 1] → (B, T) int64 token counts
Assigner = Callable[[Tensor], Tensor]


def choose_best(quality: Tensor, lengths: Tensor, standard: RewardStats, w_q: float) -> Tensor:
    """The candidate with the highest proxy reward: (N,) int64 from qualities (N, M)."""
    return rewards(quality, lengths, standard, w_q).argmax(1)


def choose_by_threshold(quality: Tensor, lengths: Tensor, threshold: float) -> Tensor:
    """The shortest candidate whose quality reaches a threshold, else the longest.

    Of equally short ones the best.

    Args:
        quality: (N, M) float, higher is better.
        lengths: (M,) int64 tokens of each candidate.
        threshold: in the unit of quality.

    Returns:
        (N,) int64.
    """
    reached = quality >= threshold
    shortest = torch.where(reached, lengths, lengths.max() + 1).amin(1, keepdim=True)
    best = quality.masked_fill(~reached | (lengths != shortest), float("-inf")).argmax(1)
    return torch.where(reached.any(1), best, lengths.argmax())


def make_assigner(
    spec: str,
    model: VideoTokenizer,
    router: Router | None = None,
    proxy: VideoTokenizer | None = None,
    max_tokens: int | None = None,
) -> Assigner:
    """A chooser of assignments, by name.

    Args:
        spec: see the head of this file.
        model: whose levels and blocks are meant.
        router: needed by "router", and by "best" for the statistics of its reward.
        proxy: what "best" and "threshold" search with; the model itself if None.
        max_tokens: the most that a clip may take; for "router" and "best".

    Returns:
        clips (B, 3, F, H, W) → (B, T) int64.

    Raises:
        EvatokError: an unknown name, levels that the model does not have, no router, or a limit
            below the shortest assignment.
    """
    shortest = model.levels.values[0] * model.num_blocks
    if max_tokens is not None and max_tokens < shortest:
        raise EvatokError(f"at most {max_tokens} tokens a clip: the shortest has {shortest}")
    name, _, value = spec.partition(":")
    if name in ("router", "best"):
        w_q = _number(spec, value) if value else None
        if w_q is not None and not 0 <= w_q <= 2:
            raise EvatokError(f"assignment {spec!r}: w_q is outside [0, 2]")
        trained = _usable(name, model, router)
        if name == "router":
            return _routed(trained, w_q, max_tokens, model.num_blocks)
        return _best(trained, w_q, proxy or model, max_tokens)
    if max_tokens is not None:
        raise EvatokError(f"assignment {spec!r} takes no limit of tokens: 'router' and 'best' do")
    if name == "threshold":
        return _by_threshold(spec, value, proxy or model)
    text = value if name == "uniform" else spec
    if (name == "uniform") == ("," in text) or not text.replace(",", "").isdigit():
        levels = ", ".join(str(v) for v in model.levels.values)
        raise EvatokError(
            f"assignment {spec!r}: choose 'router', 'best', 'threshold:DB', 'uniform:N' with N "
            f"one of {levels}, or {model.num_blocks} of these numbers with commas between"
        )
    fixed = torch.tensor(parse_assignment(text, model.levels, model.num_blocks))
    return lambda clips: fixed.to(clips.device).expand(len(clips), -1)


def _number(spec: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise EvatokError(f"assignment {spec!r}: {value!r} is not a finite number")
    return number


def _usable(name: str, model: VideoTokenizer, router: Router | None) -> Router:
    if router is None:
        raise EvatokError(f"assignment {name!r} needs a router; the model folder has none")
    if tuple(router.levels.values) != tuple(model.levels.values):
        raise EvatokError(
            f"the router's levels {router.levels.values} are not the tokenizer's "
            f"{model.levels.values}"
        )
    return router


def _routed(router: Router, w_q: float | None, max_tokens: int | None, num_blocks: int) -> Assigner:
    if w_q is not None and not router.config.preference:
        raise EvatokError(f"this router knows w_q {router.config.w_q:g} only: write 'router'")
    if num_blocks > router.num_blocks:
        if max_tokens is not None:
            raise EvatokError(
                f"a router of {router.num_blocks} blocks slides over clips of {num_blocks} and "
                "takes no limit of tokens"
            )
        return partial(slide, router, w_q=w_q)
    return partial(router.assign, w_q=w_q, max_tokens=max_tokens)


def _best(
    router: Router, w_q: float | None, model: VideoTokenizer, max_tokens: int | None
) -> Assigner:
    config = router.config
    if config.standard is None:
        raise EvatokError("assignment 'best' needs the statistics of the router's reward: train it")
    wanted = config.w_q if w_q is None else w_q
    return partial(
        _rewarded, model, config.standard, wanted, max_tokens, _quality_of(config.quality)
    )


# Clips and the model → (B, M) of every candidate, higher is better.
CandidateQuality = Callable[[VideoTokenizer, Tensor], Tensor]


def _quality_of(name: Quality) -> CandidateQuality:
    if name == "psnr":
        return _psnr
    if name == "moving_psnr":
        return _moving_psnr
    distance = load_perceptual(name)
    return lambda model, clips: -candidate_measures(model, clips, {name: distance})[name]


def _psnr(model: VideoTokenizer, clips: Tensor) -> Tensor:
    return psnr_of_mse(candidate_errors(model, clips))


def _moving_psnr(model: VideoTokenizer, clips: Tensor) -> Tensor:
    weights = {"moving_mse": motion_weights(clips)}
    return psnr_of_mse(candidate_measures(model, clips, {}, weights=weights)["moving_mse"])


def _search(
    model: VideoTokenizer, clips: Tensor, quality_of: CandidateQuality = _psnr
) -> tuple[Tensor, Tensor, Levels]:
    """Quality (B, M) of every candidate, and their lengths (M,), on the CPU."""
    quality = quality_of(model, clips)
    lengths = model.levels.candidates(model.num_blocks).sum(1)
    return quality.cpu(), lengths, model.levels  # rewards are float64, which not every GPU has


def _rewarded(
    model: VideoTokenizer,
    standard: RewardStats,
    w_q: float,
    max_tokens: int | None,
    quality_of: CandidateQuality,
    clips: Tensor,
) -> Tensor:
    quality, lengths, levels = _search(model, clips, quality_of)
    table = rewards(quality, lengths, standard, w_q)
    if max_tokens is not None:
        table = table.masked_fill(lengths > max_tokens, float("-inf"))
    chosen = table.argmax(1)
    return levels.candidates(model.num_blocks)[chosen].to(clips.device)


def _by_threshold(spec: str, value: str, model: VideoTokenizer) -> Assigner:
    """The rule of `threshold:[QUALITY:]VALUE`; a perceptual distance is to stay below the value."""
    name, colon, number = value.rpartition(":")
    qualities = get_args(Quality)
    if colon and name not in qualities:
        known = ", ".join(qualities)
        raise EvatokError(f"assignment {spec!r}: no quality {name!r}; there are {known}")
    quality: Quality = next((known for known in qualities if known == name), "psnr")
    limit = _number(spec, number)
    in_decibel = quality in ("psnr", "moving_psnr")
    return partial(_reaching, model, limit if in_decibel else -limit, _quality_of(quality))


def _reaching(
    model: VideoTokenizer, threshold: float, quality_of: CandidateQuality, clips: Tensor
) -> Tensor:
    quality, lengths, levels = _search(model, clips, quality_of)
    chosen = choose_by_threshold(quality, lengths, threshold)
    return levels.candidates(model.num_blocks)[chosen].to(clips.device)
