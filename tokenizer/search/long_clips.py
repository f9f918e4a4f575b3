"""Assignments of clips that are longer than a router has learned: the router slides.

The authors search longer clips autoregressively and leave the router as future work. A router of
T blocks is laid over the first T, then moves on by `stride` blocks at a time and takes the most
probable assignment that begins with what has been chosen already. Its cost is linear in the length.

Shape letters: B batch, T blocks of the router, F frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.router import Router


@torch.no_grad()
def slide(router: Router, clips: Tensor, *, stride: int = 1, w_q: float | None = None) -> Tensor:
    """Assign clips of any number of blocks, at least the router's.

    Args:
        router: of T blocks.
        clips: (B, 3, F, H, W) float in [−1, 1], whole blocks.
        stride: blocks by which the window moves, 1 to T. T: windows know nothing of each other.
        w_q: weight of quality in [0, 2]; needs a router with `preference`.

    Returns:
        (B, blocks of the clips) int64 token counts.

    Raises:
        EvatokError: clips shorter than the router's, frames that make no whole blocks, or a stride
            out of range.
    """
    frames, size = router.config.patch[0], router.num_blocks
    blocks, rest = divmod(clips.shape[2], frames)
    if rest or blocks < size:
        raise EvatokError(f"{clips.shape[2]} frames are not {size} or more blocks of {frames}")
    if not 1 <= stride <= size:
        raise EvatokError(f"stride {stride} is not 1 to {size}")
    chosen = router.assign(clips[:, :, : size * frames], w_q=w_q)
    while chosen.shape[1] < blocks:
        start = min(chosen.shape[1] + stride, blocks) - size
        window = clips[:, :, start * frames : (start + size) * frames]
        found = router.assign(window, chosen[:, start:], w_q=w_q)
        chosen = torch.cat([chosen[:, :start], found], 1)
    return chosen
