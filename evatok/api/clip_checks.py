"""Refuse clips and tokens that a tokenizer would misread, with the line that mends them."""

from __future__ import annotations

import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.tokens import Tokens
from video.clips import Size, sides

RANGE_SLACK = 1e-3  # of what resizing overshoots


def check_clips(clips: Tensor, num_frames: int, size: Size) -> Tensor:
    """Return clips (B, 3, F, H, W) as float32, if they are floats in [−1, 1] of this size.

    Args:
        clips: what was given.
        num_frames: F.
        size: H and W, or the side of a square.

    Raises:
        EvatokError: anything else; names the shape, type or range and the remedy.
    """
    if not isinstance(clips, Tensor):
        raise EvatokError(
            f"a {type(clips).__name__} cannot be encoded: give a Video (of an array "
            "evatok.Video(frames, rate)) or a tensor of clips"
        )
    height, width = sides(size)
    shape, wanted = tuple(clips.shape), f"(B, 3, {num_frames}, {height}, {width})"
    if clips.ndim == 4 and shape[-1] == 3:
        raise EvatokError(f"{shape} are the frames of a video: give evatok.Video(frames, rate)")
    remedy = _axes(shape)
    if remedy:
        raise EvatokError(f"clips have shape {shape}, not {wanted}: {remedy}")
    if not clips.is_floating_point():
        name = str(clips.dtype).removeprefix("torch.")
        raise EvatokError(f"clips are {name}, not floats in [−1, 1]: clips / 127.5 - 1")
    if shape[2:] != (num_frames, height, width):
        raise EvatokError(
            f"clips have shape {shape}, not {wanted}: cut and resize them, or give an "
            "evatok.Video, which may have any size and length"
        )
    low, high = (float(value) for value in torch.aminmax(clips))
    if not (low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK):  # true for NaN as well
        remedy = "they hold NaN"
        if low == low:
            remedy = "clips / 127.5 - 1" if low >= 0 and high <= 255 else "scale or clamp them"
        raise EvatokError(f"clips reach from {low:.4g} to {high:.4g}, not [−1, 1]: {remedy}")
    return clips.float()


def check_tokens(tokens: Tokens, codebook_size: int) -> Tokens:
    """Return tokens of at least one clip, if their ids are in [0, codebook_size).

    Raises:
        EvatokError: anything else.
    """
    if not isinstance(tokens, Tokens):
        raise EvatokError(
            f"a {type(tokens).__name__} cannot be decoded: give what encode returns, or "
            "evatok.open(path) of a token file"
        )
    if not len(tokens.ids):
        raise EvatokError("no tokens: give those of at least one clip")
    low, high = (int(value) for value in torch.aminmax(tokens.ids))
    if low < 0 or high >= codebook_size:
        raise EvatokError(
            f"there is an id {low if low < 0 else high}, where the codebook has 0 to "
            f"{codebook_size - 1}: give the tokens of this model"
        )
    return tokens


def _axes(shape: tuple[int, ...]) -> str:
    """Say how to put the axes in order; empty where they are."""
    if len(shape) == 4 and shape[0] == 3:
        return "one clip is a batch of one: clips[None]"
    if len(shape) != 5 or 0 in shape:
        return "give a batch of clips"
    if shape[1] == 3:
        return ""
    if shape[2] == 3:
        return "channels come before frames: clips.transpose(1, 2)"
    if shape[4] == 3:
        return "channels come first: clips.permute(0, 4, 1, 2, 3)"
    return "give RGB, three channels"
