"""Better tokens than the encoder's, searched for clip by clip with the decoder's gradient.

An encoder guesses in one pass; the decoder can tell how good the guess is, and where it should go.
Here every token is a mixture of codes, by their cosine to a vector of its own: Adam moves the
vectors against the decoder's error, while a falling temperature makes each mixture a single code.
The best tokens met on the way are kept: as many as before, decoded as before. Campos et al. 2019
(arXiv:1906.01223) search so for pictures, Yang et al. 2020 (arXiv:2006.04240) cool so.

Shape letters: B batch, T blocks, L packed tokens, F frames, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.losses.reconstruction import pixel_errors, pixel_weights
from tokenizer.model import VideoTokenizer
from tokenizer.tokens import Tokens

RATE = 0.05  # first step of Adam, of unit vectors; it falls linearly to a tenth
TEMPERATURES = 0.04, 0.0007  # of cosines, first and last; it falls by equal factors
MOST_SHARES = 2**26  # of codes in mixtures, held at once: 256 MB in float32, and as much again
CHECK_EVERY = 10  # steps after which the nearest codes are tried
MOTION_WEIGHT = 4.0  # how much more pixels count that move


def refine(
    model: VideoTokenizer,
    clips: Tensor,
    tokens: Tokens,
    steps: int,
    motion_weight: float = MOTION_WEIGHT,
) -> Tokens:
    """Search for tokens of a smaller error, with the same assignment.

    The error is the mean square over pixels, those that move weighed more; no clip's becomes
    larger. Other batches or numbers of threads may end with other tokens, as good ones.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float in [−1, 1], F = 4 T.
        tokens: of these clips, on the model's device; the encoder's own, say.
        steps: each costs as much as decoding and its gradient; 0 = tokens as they are.
        motion_weight: how much more a pixel counts where the clip moves (`pixel_weights`).

    Raises:
        EvatokError: a negative number of steps, or clips that do not fit the model.
    """
    if steps < 0:
        raise EvatokError(f"{steps} steps of refinement: give 0 or more")
    model.check(clips, tokens.assignment)
    if not steps:
        return tokens
    lengths = tokens.lengths
    shares = model.config.codebook_size * int(lengths.max())
    count = max(1, MOST_SHARES // shares)  # clips at once
    parts = zip(
        clips.split(count),
        tokens.ids.split([int(part.sum()) for part in lengths.split(count)]),
        tokens.assignment.split(count),
        strict=True,
    )
    with torch.inference_mode(False), torch.enable_grad():
        return Tokens.cat(
            [
                _search(model, part.clone(), Tokens(ids, assignment), steps, motion_weight)
                for part, ids, assignment in parts
            ]
        )


def _search(
    model: VideoTokenizer, clips: Tensor, tokens: Tokens, steps: int, motion_weight: float
) -> Tokens:
    groups = ClipGroups.from_assignment(tokens.assignment.clone())
    rows = groups.rows_in_batch_order()  # of each packed token, its place in sorted order
    lengths = tokens.assignment.sum(1)
    clip_of_row = torch.empty_like(rows)
    clip_of_row[rows] = torch.repeat_interleave(
        torch.arange(len(clips), device=rows.device), lengths
    )
    best = torch.empty_like(rows)
    best[rows] = tokens.ids.to(rows.dtype)
    weights = pixel_weights(clips, motion_weight, 0.0) if motion_weight else None
    with torch.no_grad():
        codes = model.quantizer.lookup(torch.arange(model.config.codebook_size, device=rows.device))
        least = _errors(model, codes[best], groups, clips, weights)
        start = F.normalize(model._encode(clips, groups).float(), dim=-1)
    scale = least.clamp_min(torch.finfo(least.dtype).tiny)  # clips count alike
    vectors = start.clone().requires_grad_()
    adam = torch.optim.Adam([vectors], lr=RATE, betas=(0.9, 0.99))
    first, last = TEMPERATURES
    for step in range(steps):
        done = step / max(1, steps - 1)
        unit = F.normalize(vectors, dim=-1)
        mixture = torch.softmax(unit @ codes.T / (first * (last / first) ** done), -1)
        errors = _errors(model, F.normalize(mixture @ codes, dim=-1), groups, clips, weights)
        (vectors.grad,) = torch.autograd.grad((errors / scale).sum(), vectors)
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - 0.9 * done)
        adam.step()
        with torch.no_grad():
            vectors.copy_(F.normalize(vectors, dim=-1))
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                ids = model.quantizer.nearest(vectors)
                errors = _errors(model, codes[ids], groups, clips, weights)
                is_better = errors < least
                least = torch.where(is_better, errors, least)
                best = torch.where(is_better[clip_of_row], ids, best)
    return Tokens(best[rows].to(tokens.ids.dtype), tokens.assignment)


def _errors(
    model: VideoTokenizer,
    codes: Tensor,
    groups: ClipGroups,
    clips: Tensor,
    weights: Tensor | None,
) -> Tensor:
    """(B,) weighted mean squared error of what codes (L, code_dim), sorted, decode to."""
    return pixel_errors(model._decode(codes, groups)[0], clips, weights, clamp=True)[1]
