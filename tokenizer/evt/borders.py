"""Smooth the jump between two clips that were coded apart.

A clip knows nothing of the one before it, so a picture that stands still in the source jumps where
one ends and the next begins. Where the two frames at a border are near each other, their difference
is taken for such a jump and spread over `SPAN` frames on each side, which get the less of it the
farther they are. Where frames differ much, things move: nothing is changed.
Nothing of it is in the file: it is what a decoder does.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 4  # frames on each side
FAR = 102.0  # difference, of 0 to 255, from which on a pixel moves


def smooth_border(before: Tensor, after: Tensor) -> None:
    """Spread the jump from one clip to the next, in place.

    Args:
        before: (F, H, W, 3) uint8, the last frames are changed.
        after: (F', H, W, 3) uint8, which follow; the first frames are changed. No frame is
            changed by both of its clip's borders: at most half of a clip's frames are.
    """
    span = min(SPAN, len(before) // 2, len(after) // 2)
    if not span:
        return
    last, first = before[-1].float(), after[0].float()
    jump = (first - last) * _stands(last, first)
    for away in range(span):
        part = jump * ((span - away) / (2 * span + 1))
        for frames, place, edge, sign in (
            (before, len(before) - 1 - away, last, 1),
            (after, away, first, -1),
        ):
            frame = frames[place].float()
            changed = frame + sign * part * _stands(edge, frame)
            frames[place] = changed.round().clamp(0, 255).to(torch.uint8)


def _stands(one: Tensor, other: Tensor) -> Tensor:
    """(H, W, 1) how far pixels of two frames are the same thing: 1 if equal, 0 from `FAR` on."""
    return (1 - (one - other).abs().amax(-1, keepdim=True) / FAR).clamp_min(0)
