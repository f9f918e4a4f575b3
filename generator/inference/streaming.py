"""Frames as they are made: each block is decoded as soon as its codes are out.

The decoder is block-causal, so a block needs the codes so far and no later ones; its keys and
values of earlier blocks are kept until the clip is complete.

Shape letters: H W pixels; a block has 4 frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from generator.gpt import GPT
from generator.inference.engine import stream
from generator.inference.requests import Request
from tokenizer.coding.incremental import BlockDecoder, Past
from tokenizer.model import VideoTokenizer
from video.clips import to_frames


class StreamedBlock(NamedTuple):
    """A few frames of one clip.

    Attributes:
        request: number of the request.
        block: number of the block in the clip.
        pixels: (3, 4, H, W) float32 in [−1, 1], or as frames (4, H, W, 3) uint8.
        tokens: how many the block has.
    """

    request: int
    block: int
    pixels: Tensor
    tokens: int


def stream_frames(
    gpt: GPT, tokenizer: VideoTokenizer, requests: Sequence[Request], batch_size: int = 32
) -> Iterator[StreamedBlock]:
    """As `stream_pixels`, as frames (4, H, W, 3) uint8."""
    for done in stream_pixels(gpt, tokenizer, requests, batch_size):
        yield done._replace(pixels=to_frames(done.pixels))


def stream_pixels(
    gpt: GPT, tokenizer: VideoTokenizer, requests: Sequence[Request], batch_size: int = 32
) -> Iterator[StreamedBlock]:
    """Generate a clip for each request, block by block.

    Args:
        gpt: the model, in eval mode.
        tokenizer: of its tokens, in eval mode.
        requests: at least one, of any mixture.
        batch_size: requests at work at the same time.

    Yields:
        Every block of every clip, in order within a clip, given ones first: what decoding the
        whole clip gives, up to rounding. The next token waits until the block has been taken.

    Raises:
        EvatokError: as `engine.sample`.
    """
    decoder = BlockDecoder(tokenizer)
    device = tokenizer.patch_in.weight.device
    pasts: dict[int, Past] = {}  # of the clips at work

    def decode(number: int, ids: Tensor) -> StreamedBlock:
        past = pasts.pop(number, Past())
        with torch.no_grad():
            pixels, after = decoder.step(past, ids[None].to(device))
        if after.num_blocks < len(requests[number].given) + requests[number].num_blocks:
            pasts[number] = after
        shown = pixels[0].float().clamp(-1, 1).cpu()
        return StreamedBlock(number, past.num_blocks, shown, len(ids))

    for number, block, ids in stream(gpt, requests, batch_size):
        given = requests[number].given
        if block == len(given):  # the first that was generated
            for kept in given:
                yield decode(number, kept)
        yield decode(number, ids)
