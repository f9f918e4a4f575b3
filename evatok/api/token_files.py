"""Tokens of whole videos, in memory and as token files (docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evatok.api.videos import Video, join, mean_rate
from evatok.core.errors import EvatokError
from evatok.generate.token_file import EncodeSettings, encode_frames, header_of
from evatok.generate.token_rate import Rate
from evatok.hub import Models
from tokenizer.evt.codec import ChunkDecoder
from tokenizer.evt.format import Chunk, EvtError, Header
from tokenizer.evt.reader import EvtReader
from tokenizer.evt.writer import write_whole
from video.clips import resize


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """Tokens of a video of any size and length.

    Attributes:
        header: what a decoder must know: model, size, unit of time.
        chunks: runs of frames with their times, assignment and ids.
        complete: all frames of the source are there: False of a file whose encoding was broken off.
    """

    header: Header
    chunks: tuple[Chunk, ...]
    complete: bool = True

    def __len__(self) -> int:
        """Return the number of tokens."""
        return sum(len(chunk.ids) for chunk in self.chunks)

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return sum(len(chunk.times) for chunk in self.chunks)

    @property
    def ids(self) -> np.ndarray:
        """(L,) int64 codebook ids, packed by clip, then tile, then block."""
        return np.concatenate([chunk.ids for chunk in self.chunks])

    @property
    def assignment(self) -> list[np.ndarray]:
        """For each clip (N tiles, T blocks) int64 token counts."""
        return [part for chunk in self.chunks for part in chunk.assignment]

    def __repr__(self) -> str:
        return f"VideoTokens({len(self)} tokens, {self.num_frames} frames)"

    def save(self, path: Path | str) -> None:
        """Write a token file, whole or not at all.

        Raises:
            EvatokError: the name does not end in .evt.
        """
        path = Path(path)
        if path.suffix != ".evt":
            raise EvatokError(f"{path}: a token file's name ends in .evt")
        write_whole(path, self.header, self.chunks, self.complete)


def open(path: Path | str) -> VideoTokens:
    """Read a token file; its sound is left out.

    Raises:
        EvtError: no token file, a damaged one, or one without frames.
    """
    with EvtReader(path) as reader:
        chunks = tuple(reader.chunks())
        if reader.damage:
            raise EvtError(
                f"{path}: {reader.damage[0]}: `evatok decode --allow-damaged` decodes the rest"
            )
        if not chunks:
            raise EvtError(f"{path}: there are no frames in it: encode the video again")
        header = reader.header.model_copy(update={"sound": ""})
        return VideoTokens(header, chunks, reader.is_complete)


def encode_video(models: Models, video: Video, rate: Rate, refine_steps: int = 0) -> VideoTokens:
    """Encode a video as `evatok encode` does, without sound."""
    settings = EncodeSettings(sound=False, refine_steps=refine_steps)
    _, height, width, _ = video.frames.shape
    header = header_of(models, height, width, video.tick, rate, settings)
    chunks = encode_frames(models, header, rate, video.timed, settings)
    return VideoTokens(header, tuple(chunks))


def decode_video(models: Models, tokens: VideoTokens) -> Video:
    """Decode a video at its own size and times.

    Raises:
        EvtError: the tokens are another model's.
    """
    decoder, tick = ChunkDecoder(tokens.header, models.final.eval()), tokens.header.tick
    pictures = [
        (ticks * tick, picture)
        for clip in decoder.clips(tokens.chunks)
        for ticks, picture in zip(
            clip.times, resize(clip.pictures, tokens.header.shown).numpy(), strict=True
        )
    ]
    rate = mean_rate([time for time, _ in pictures], 25.0)
    return join(pictures, rate, "the token file")
