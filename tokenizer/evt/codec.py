"""Frames to chunks of tokens, and back.

Shape letters: F frames, N tiles, T blocks, H W pixels of the picture, S side of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evatok.core.compute.devices import device_of
from tokenizer.coding.exact import ExactEncoder
from tokenizer.coding.refined import refine
from tokenizer.evt.borders import smooth_border
from tokenizer.evt.format import Chunk, EvtError, Header
from tokenizer.evt.pictures import Fit, to_coded
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import model_hash
from tokenizer.tokens import Tokens
from video.clips import pad_last, to_clip

# clips (B, 3, F, S, S) in [−1, 1] → (B, T) int64 token counts
Assign = Callable[[Tensor], Tensor]
Timed = tuple[Fraction, np.ndarray]  # seconds, (H, W, 3) uint8


def ticks_of(
    times: Iterable[Fraction], header: Header, previous: int | None = None
) -> tuple[int, ...]:
    """Times in the header's ticks; each at least one tick after the one before.

    Args:
        times: seconds.
        header: of the file.
        previous: tick of the frame before; None: there is none.
    """
    ticks: list[int] = []
    for time in times:
        tick = round(time / header.tick)
        previous = tick if previous is None else max(tick, previous + 1)
        ticks.append(previous)
    return tuple(ticks)


def clips_of_chunk(frames: Tensor, header: Header) -> Iterator[Tensor]:
    """Coded frames (F, H, W, 3) uint8 → for each clip its tiles (N, 3, F', S, S) in [−1, 1].

    The last clip is filled up by repeating its last frame. One clip is made at a time: as floats
    that overlap, the tiles of a chunk take many times the memory of its frames.
    """
    for part in frames.split(header.num_frames):
        tiles = header.grid.cut(pad_last(part, header.num_frames))
        clip = torch.empty(len(tiles), 3, *tiles[0].shape[:3])
        for place, tile in enumerate(tiles):
            clip[place] = to_clip(tile)
        yield clip


def in_batches(clips: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut tensors (N, ...) that come one by one into batches of `size` rows; the last has fewer."""
    waiting: list[Tensor] = []
    count = 0
    for clip in clips:
        for part in clip.split(size):
            while len(part):
                piece, part = part[: size - count], part[size - count :]
                waiting.append(piece)
                count += len(piece)
                if count == size:
                    yield waiting[0] if len(waiting) == 1 else torch.cat(waiting)
                    waiting, count = [], 0
    if waiting:
        yield torch.cat(waiting)


def shape_of(model: VideoTokenizer) -> dict[str, Any]:
    """The fields of a header that follow from the tokenizer."""
    config = model.config
    return {
        "levels": tuple(model.levels.values),
        "codebook_size": config.codebook_size,
        "num_frames": config.num_frames,
        "frames_per_block": config.patch[0],
        "size": config.size,
    }


class ChunkEncoder:
    """Encodes runs of frames, many tiles at once."""

    def __init__(
        self,
        header: Header,
        encoder: ExactEncoder,
        assign: Assign,
        batch_size: int = 32,
        refine_steps: int = 0,
    ) -> None:
        """Take the parts.

        Args:
            header: of the file.
            encoder: of the model.
            assign: of whole clips.
            batch_size: tiles computed at once, of no effect on ids that are not refined.
            refine_steps: of the search for better ids (`tokenizer.coding.refined`).
        """
        self.header, self.encoder, self.assign = header, encoder, assign
        self.batch_size, self.refine_steps = batch_size, refine_steps
        self.device = device_of(encoder.model)

    def encode(self, frames: list[Timed], first: int, previous: int | None = None) -> Chunk:
        """Encode one chunk.

        Args:
            frames: 1 to `frames_per_chunk`.
            first: number of the first one.
            previous: tick of the frame before it, if there is one.
        """
        header = self.header
        pictures = torch.from_numpy(np.stack([picture for _, picture in frames]))
        coded = to_coded(pictures, cast(Fit, header.fit), header.size)
        # the tiles are made twice: all of them together are too many
        batches = in_batches(clips_of_chunk(coded, header), self.batch_size)
        chosen = torch.cat([self.assign(batch.to(self.device)) for batch in batches])
        clips, blocks = clips_of_chunk(coded, header), header.blocks(len(frames))
        assignment, ids = [], []
        for clip, levels, count in zip(clips, chosen.split(len(header.grid)), blocks, strict=True):
            # blocks behind the last frame are left out: no block depends on a later one
            levels, clip = levels[:, :count], clip[:, :, : count * header.frames_per_block]
            for rows, part in zip(
                levels.split(self.batch_size), clip.split(self.batch_size), strict=True
            ):
                part = part.to(self.device)
                tokens = self.encoder.encode(part, rows)
                ids.append(refine(self.encoder.model, part, tokens, self.refine_steps).ids)
            assignment.append(levels.cpu().numpy())
        times = ticks_of((time for time, _ in frames), header, previous)
        return Chunk(first, times, tuple(assignment), torch.cat(ids).cpu().numpy())


@dataclass(frozen=True)
class DecodedClip:
    """Frames of one clip.

    Attributes:
        first: number of its first frame.
        times: ticks of its frames.
        tokens: of its N tiles.
        pictures: (F, H, W, 3) uint8 at the coded size.
    """

    first: int
    times: tuple[int, ...]
    tokens: Tokens
    pictures: Tensor

    @property
    def stop(self) -> int:
        """Number of the frame after its last."""
        return self.first + len(self.times)


class ChunkDecoder:
    """Decodes chunks with the tokenizer that made them."""

    def __init__(self, header: Header, model: VideoTokenizer, batch_size: int = 32) -> None:
        """Take the model if it is the file's.

        Raises:
            EvtError: it is another one, or the header tells other sizes than the model has.
        """
        found = model_hash(model)
        if found != header.weights:
            raise EvtError(
                f"the file was encoded with {header.model!r}, weights {header.weights}; "
                f"this model has weights {found}: give the file's own by --model"
            )
        for name, value in shape_of(model).items():
            if getattr(header, name) != value:
                raise EvtError(
                    f"the header tells {name} {getattr(header, name)}, and the model that it names "
                    f"has {value}: it is damaged: encode the video again"
                )
        self.header, self.model, self.batch_size = header, model, batch_size

    def clips(
        self, chunks: Iterable[Chunk], first: int = 0, smooth: bool = True
    ) -> Iterator[DecodedClip]:
        """Decode chunks clip by clip; one clip is held back.

        Args:
            chunks: of a file with this header, in order.
            first: frame whose clip is the first that is wanted.
            smooth: spread the jumps between clips that follow each other (`smooth_border`).
        """
        waiting: DecodedClip | None = None
        for chunk in chunks:
            for clip in self._clips(chunk, first):
                if waiting is not None:
                    if smooth and waiting.stop == clip.first:
                        smooth_border(waiting.pictures, clip.pictures)
                    if waiting.stop > first:
                        yield waiting
                waiting = clip
        if waiting is not None and waiting.stop > first:
            yield waiting

    def _clips(self, chunk: Chunk, first: int) -> Iterator[DecodedClip]:
        """Clips of a chunk; of those before the first wanted one, the last alone."""
        header, position = self.header, 0
        for index, part in enumerate(chunk.assignment):
            levels = torch.from_numpy(np.ascontiguousarray(part))
            count = int(levels.sum())
            tokens = Tokens(torch.from_numpy(chunk.ids[position : position + count]), levels)
            position += count
            times = chunk.times[index * header.num_frames :][: header.num_frames]
            start = chunk.first + index * header.num_frames
            if start + len(times) >= first:
                yield DecodedClip(start, times, tokens, self._pictures(tokens, len(times)))

    @torch.no_grad()
    def _pictures(self, tokens: Tokens, count: int) -> Tensor:
        """The first frames of a clip from the tokens of its tiles: (count, H, W, 3) uint8."""
        device, tiles, position = self.model.quantizer.codebook.device, [], 0
        for rows in tokens.assignment.split(self.batch_size):
            ids = tokens.ids[position : position + int(rows.sum())]
            position += len(ids)
            clips = self.model.decode(Tokens(ids, rows).to(device)).float().clamp(-1, 1)
            tiles.append(clips.cpu().add(1).mul(127.5).permute(0, 2, 3, 4, 1))
        return self.header.grid.blend(torch.cat(tiles)[:, :count])


def runs(frames: Iterable[Timed], count: int) -> Iterator[list[Timed]]:
    """Lists of `count` frames, the last one shorter."""
    run: list[Timed] = []
    for frame in frames:
        run.append(frame)
        if len(run) == count:
            yield run
            run = []
    if run:
        yield run
