"""Better tokens than the encoder's, searched for clip by clip with the decoder's gradient.

An encoder guesses in one pass; the decoder can tell how good the guess is, and where it should go.
Here the code vectors of a clip are moved by Adam against the decoder's error, with the gradient
passed straight through the quantizer, and the best tokens met on the way are kept: as many as
before, decoded as before. Campos et al. 2019 (arXiv:1906.01223) do so for pictures; the gradient is
that of van den Oord et al. 2017 (arXiv:1711.00937).

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

RATE = 0.01  # first step of Adam, of unit vectors; it falls linearly to a tenth
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
    with torch.inference_mode(False), torch.enable_grad():
        return _search(model, clips.clone(), tokens, steps, motion_weight)


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
    with torch.no_grad():
        weights = pixel_weights(clips, motion_weight, 0.0) if motion_weight else None
        least = _errors(model, model.quantizer.lookup(best), groups, clips, weights)
        start = F.normalize(model._encode(clips, groups).float(), dim=-1)
    scale = least.clamp_min(torch.finfo(least.dtype).tiny)  # clips count alike
    vectors = start.clone().requires_grad_()
    adam = torch.optim.Adam([vectors], lr=RATE, betas=(0.9, 0.99))
    for step in range(steps):
        unit = F.normalize(vectors, dim=-1)
        with torch.no_grad():
            ids = model.quantizer.nearest(unit)
            jump = model.quantizer.lookup(ids).float() - unit
        errors = _errors(model, unit + jump, groups, clips, weights)
        with torch.no_grad():
            is_better = errors < least
            least = torch.where(is_better, errors, least)
            best = torch.where(is_better[clip_of_row], ids, best)
        (vectors.grad,) = torch.autograd.grad((errors / scale).sum(), vectors)
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - 0.9 * step / steps)
        adam.step()
        with torch.no_grad():
            vectors.copy_(F.normalize(vectors, dim=-1))
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
