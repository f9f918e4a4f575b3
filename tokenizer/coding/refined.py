"""Tokens that decode with less error than the encoder's, found with the decoder's gradient.

Every token gets a vector, which the encoder gives first, and is decoded as a mixture of codes: the
softmax of their cosines to the vector. Adam moves the vectors against the decoder's error while the
temperature falls, until each mixture is a single code. The best tokens met on the way are kept;
their number does not change. Gradients come from products in bfloat16 where the device has them;
what is kept is decided by errors in float32. Campos et al. 2019 (arXiv:1906.01223) optimise codes
of pictures by gradient, Yang et al. 2020 (arXiv:2006.04240) let a temperature fall.

Shape letters: B batch, T blocks, L packed tokens, K codebook size, F frames, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.compute.precision import has_bfloat16
from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.losses.reconstruction import LOG_FLOOR, pixel_errors, pixel_weights
from tokenizer.model import VideoTokenizer
from tokenizer.tokens import Tokens

METHOD = "mixtures 2"  # another name for every change that changes the tokens found
LEARNING_RATE = 0.05  # of Adam, for unit vectors; it falls linearly to a tenth
TEMPERATURES = 0.04, 0.0007  # of cosines, first and last; it falls by equal factors
CHECK_EVERY = 10  # steps after which the nearest codes are tried
MOTION_WEIGHT = 4.0  # how much more pixels count that move
MEMORY = 2**30  # bytes that mixtures and the decoder's activations may take, roughly
ACTIVATIONS = 16  # of the decoder's width, kept for a row of a layer until the gradient is known


def refine(
    model: VideoTokenizer,
    clips: Tensor,
    tokens: Tokens,
    steps: int,
    motion_weight: float = MOTION_WEIGHT,
) -> Tokens:
    """Search for tokens with less error and the same assignment.

    The error is the mean square over pixels, those that move weighed more. No clip's becomes
    larger. Another batch or number of threads may end with other tokens.

    Args:
        model: in eval mode.
        clips: (B, 3, F, H, W) float in [−1, 1], F = 4 T, on the model's device.
        tokens: of these clips, likewise; the encoder's own, say.
        steps: of gradient descent, each about three times as long as decoding; 0 = none.
        motion_weight: how much more a pixel counts where the clip moves (`pixel_weights`).

    Returns:
        Tokens with the assignment of those given.

    Raises:
        EvatokError: a negative number of steps, or clips that do not fit the model.
    """
    if steps < 0:
        raise EvatokError(f"{steps} steps of refinement: give 0 or more")
    model.check(clips, tokens.assignment)
    if not steps:
        return tokens
    lengths = tokens.lengths
    count = max(1, MEMORY // _bytes_of_clip(model, tokens.assignment))  # clips at once
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


def _bytes_of_clip(model: VideoTokenizer, assignment: Tensor) -> int:
    """Memory that a step takes for the longest clip, roughly: three mixtures, and activations."""
    config, longest = model.config, int(assignment.sum(1).max())
    rows = longest + assignment.shape[1] * model.num_cells
    activations = rows * config.decoder.width * config.decoder.layers * ACTIVATIONS
    return 4 * (3 * longest * config.codebook_size + activations)


def _search(
    model: VideoTokenizer, clips: Tensor, tokens: Tokens, steps: int, motion_weight: float
) -> Tokens:
    """Refine clips that are computed together."""
    groups = ClipGroups.from_assignment(tokens.assignment.clone())
    rows = groups.rows_in_batch_order()  # of each packed token, its place in sorted order
    clip_of_row = torch.empty_like(rows)
    clip_of_row[rows] = torch.repeat_interleave(
        torch.arange(len(clips), device=rows.device), tokens.lengths
    )
    best = torch.empty_like(rows)  # (L,) ids, sorted
    best[rows] = tokens.ids.to(rows.dtype)
    weights = pixel_weights(clips, motion_weight, 0.0) if motion_weight else None
    with torch.no_grad():
        every = torch.arange(model.config.codebook_size, device=rows.device)
        codes = model.quantizer.lookup(every)  # (K, code_dim)
        least = _errors(model, codes[best], groups, clips, weights)  # (B,)
        vectors = F.normalize(model._encode(clips, groups).float(), dim=-1)  # (L, code_dim)
    scale = least.clamp_min(LOG_FLOOR)  # clips count alike
    vectors.requires_grad_()
    adam = torch.optim.Adam([vectors], lr=LEARNING_RATE, betas=(0.9, 0.99))
    first, last = TEMPERATURES
    kind = clips.device.type
    for step in range(steps):
        done = step / max(1, steps - 1)
        mixed = _mixtures(vectors, codes, first * (last / first) ** done)
        with torch.autocast(kind, torch.bfloat16, enabled=has_bfloat16(kind)):
            errors = _errors(model, mixed, groups, clips, weights)
        (vectors.grad,) = torch.autograd.grad((errors / scale).sum(), vectors)
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - 0.9 * done)
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


def _mixtures(vectors: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Unit means of codes (K, code_dim), by their cosines to vectors (L, code_dim): likewise."""
    with torch.autocast(vectors.device.type, enabled=False):
        shares = torch.softmax(F.normalize(vectors, dim=-1) @ codes.T / temperature, -1)  # (L, K)
        return F.normalize(shares @ codes, dim=-1)


def _errors(
    model: VideoTokenizer,
    codes: Tensor,
    groups: ClipGroups,
    clips: Tensor,
    weights: Tensor | None,
) -> Tensor:
    """Weighted mean squared errors (B,) of the clips that sorted codes (L, code_dim) decode to."""
    return pixel_errors(model._decode(codes, groups)[0], clips, weights, clamp=True)[1]
