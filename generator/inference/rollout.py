"""Predictions longer than a clip, window by window.

The frames that end one window are the condition of the next: they are encoded anew, as the first
ones of a clip, exactly as in training. A window adds F − n frames, n those of the condition. What
it adds is a function of these n frames and of its own seed, so every request is independent of
the others and the first window is the plain prediction.

Shape letters: B batch, F frames of a window, G frames in all, T blocks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from generator.gpt import GPT
from generator.inference.engine import sample
from generator.inference.requests import SamplingConfig, frame_requests
from tokenizer.tokens import Tokens


class EncoderDecoder(Protocol):
    """Interface of a tokenizer for windows; `VideoTokenizer` is one."""

    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        """Tokens of clips (B, 3, F, H, W) in [−1, 1], assigned (B, T)."""
        ...

    def decode(self, tokens: Tokens) -> Tensor:
        """Pixels (B, 3, F, H, W) of tokens."""
        ...


@dataclass(frozen=True)
class Continuation:
    """Continuation of given frames.

    Attributes:
        videos: (B, 3, G, H, W) float32 in [−1, 1], the given frames reconstructed.
        windows: tokens of each window, the kept blocks of its condition included.
    """

    videos: Tensor
    windows: tuple[Tokens, ...]


def num_windows(num_frames: int, window: int, condition: int) -> int:
    """Windows of `window` frames, each after `condition` given ones, that make `num_frames`."""
    return 1 + max(0, -(-(num_frames - window) // (window - condition)))


def window_seed(seed: int, window: int) -> int:
    """Seed of a window; that of the first is the request's own."""
    if window == 0:
        return seed
    high, low = np.random.SeedSequence((seed, window)).generate_state(2, np.uint32)
    return int(high) << 31 | int(low) >> 1  # below 2^63


@torch.no_grad()
def continue_clips(
    gpt: GPT,
    tokenizer: EncoderDecoder,
    clips: Tensor,
    num_frames: int,
    seeds: Sequence[int],
    settings: SamplingConfig,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Continuation:
    """Predict any number of frames.

    Args:
        gpt: trained with frame conditions, in eval mode.
        tokenizer: of its tokens, in eval mode, on the device of `gpt`.
        clips: (B, 3, F, H, W) float32 in [−1, 1], at least the given frames; more are ignored.
        num_frames: G, given frames included.
        seeds: one a clip.
        settings: how tokens are chosen, in every window; guidance is off, as a frame condition has
            no opposite.
        batch_size: clips that are encoded, generated and decoded together.
        progress: told the windows done and all.

    Raises:
        EvatokError: a model without frame conditions, or no frame to predict.
    """
    condition = gpt.frames
    if condition is None:
        raise EvatokError("this generator was not trained to predict frames")
    if num_frames <= condition.num_frames:
        raise EvatokError(
            f"{num_frames} frames in all, of which {condition.num_frames} are given: ask for more"
        )
    settings = settings.model_copy(update={"guidance": 1.0})
    prefix = torch.tensor([condition.prefix], device=gpt.device)
    window = gpt.vocabulary.num_blocks * condition.frames_per_block
    total = num_windows(num_frames, window, condition.num_frames)
    given = clips
    frames: list[Tensor] = []
    windows: list[Tokens] = []
    for number in range(total):
        padded = condition.pad(given).to(gpt.device).split(batch_size)
        encoded = Tokens.cat([tokenizer.encode(x, prefix.repeat(len(x), 1)) for x in padded])
        encoded = encoded.to("cpu")
        of_window = [window_seed(seed, number) for seed in seeds]
        requests = frame_requests(gpt.vocabulary, condition, encoded, of_window, settings)
        windows.append(sample(gpt, requests, batch_size))
        rows = windows[-1].blocks()
        parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        decoded = [tokenizer.decode(Tokens.from_blocks(part).to(gpt.device)) for part in parts]
        made = torch.cat(decoded).float().clamp(-1, 1).cpu()  # (B, 3, F, H, W)
        frames.append(made if number == 0 else made[:, :, condition.num_frames :])
        given = made[:, :, -condition.num_frames :]
        if progress is not None:
            progress(number + 1, total)
    return Continuation(torch.cat(frames, 2)[:, :, :num_frames], tuple(windows))
