"""Functions behind the page's tabs, of a model and files, without the page.

Shape letters: F frames, N tiles, T blocks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from evaluation.metrics.quality import psnr_pooled
from evatok.api.model import Model
from evatok.api.scores import fvd
from evatok.api.videos import Video, join, mean_rate
from evatok.core.errors import EvatokError
from evatok.generate.prompts import text_seeds
from evatok.generate.samples import (
    find_classes,
    frame_condition,
    guidance_of,
    labels_of,
    predicted_psnr,
    request_seed,
)
from generator.budget import BudgetConfig
from generator.inference.requests import Request, SamplingConfig, class_requests, text_requests
from generator.inference.streaming import stream_frames
from video.clips import resize, resize_crop, sides, to_clip
from video.reading import iter_timed

MAX_FRAMES = 160  # of an uploaded video: more are left out
MAX_SIDE = 192  # pixels: larger pictures are scaled down
MAX_CLIPS = 8  # of a request
MAX_PREDICTED = 96  # frames
MAX_REFINE = 60  # steps; of the largest upload they take minutes


def read_start(path: Path | str, count: int = MAX_FRAMES, max_side: int = MAX_SIDE) -> Video:
    """Read the first frames of a video, scaled down to a longest side; one frame at a time.

    Raises:
        VideoError: it cannot be read.
    """
    pictures: list[tuple[Fraction, np.ndarray]] = []
    for time, frame in islice(iter_timed(path), count):
        height, width = frame.shape[:2]
        scale = min(1.0, max_side / max(height, width))
        if scale < 1:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            frame = resize(torch.from_numpy(np.ascontiguousarray(frame))[None], size)[0].numpy()
        pictures.append((time, frame))
    return join(pictures, mean_rate([time for time, _ in pictures], 25.0), str(path))


@dataclass(frozen=True)
class Reconstruction:
    """A video, what its tokens give back, and what they cost.

    Attributes:
        original: mp4 of what was encoded.
        decoded: mp4 of what the tokens give back.
        token_file: the .evt.
        tiles: (N, T) int64 tokens of each tile and block of the video.
        grid: rows and columns of the tiles.
        seconds: at which each block begins, after the first frame, (T,).
        video: what was encoded.
        num_bytes: of the token file.
        psnr: dB, of all frames as one, at most 100.
    """

    original: Path
    decoded: Path
    token_file: Path
    tiles: np.ndarray
    grid: tuple[int, int]
    seconds: tuple[float, ...]
    video: Video
    num_bytes: int
    psnr: float

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole video."""
        return int(self.tiles.sum())

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the token file for each pixel of the video."""
        frames, height, width, _ = self.video.frames.shape
        return 8 * self.num_bytes / (frames * height * width)


def reconstruct(
    model: Model,
    path: Path | str,
    folder: Path,
    quality: float | None = None,
    max_tokens: int | None = None,
    refine: int = 0,
) -> Reconstruction:
    """Encode the start of a video and decode it again.

    Args:
        model: with a final tokenizer and a router.
        path: a video of any size; see `read_start`.
        folder: gets original.mp4, decoded.mp4 and video.evt.
        quality: w_q in [0, 2]; None: the router's own choice.
        max_tokens: the most that a clip of one tile may take.
        refine: steps of a search for tokens with less error, at most `MAX_REFINE`.

    Raises:
        EvatokError: the video cannot be read, the budget cannot be met, or too many steps.
    """
    if not 0 <= refine <= MAX_REFINE:
        raise EvatokError(f"{refine} steps of refinement asked for: from 0 to {MAX_REFINE}")
    video = read_start(path)
    tokens = model.encode(video, quality=quality, max_tokens=max_tokens, refine=refine)
    again = model.decode(tokens)
    names = ("original.mp4", "decoded.mp4", "video.evt")
    original, decoded, token_file = (folder / name for name in names)
    video.save(original)
    again.save(decoded)
    tokens.save(token_file)
    tiles = np.concatenate(tokens.assignment, 1)
    step, corners = tokens.header.frames_per_block, tokens.header.grid.corners
    seconds = (video.times[min(place * step, len(video) - 1)] for place in range(tiles.shape[1]))
    clips = [to_clip(side.frames)[None] for side in (again, video)]
    return Reconstruction(
        original,
        decoded,
        token_file,
        tiles,
        (len({top for top, _ in corners}), len({left for _, left in corners})),
        tuple(float(time - video.times[0]) for time in seconds),
        video,
        token_file.stat().st_size,
        psnr_pooled(*clips),
    )


@dataclass
class Clip:
    """A clip that is being made.

    Attributes:
        title: its class or text.
        num_blocks: T.
        parts: frames (4, H, W, 3) uint8 of the blocks so far.
        blocks: their tokens.
    """

    title: str
    num_blocks: int
    parts: list[np.ndarray] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    @property
    def frames(self) -> np.ndarray | None:
        """(F, H, W, 3) uint8 so far; None before the first block."""
        return np.concatenate(self.parts) if self.parts else None

    @property
    def is_done(self) -> bool:
        """Whether all blocks are there."""
        return len(self.blocks) == self.num_blocks


def sample(
    model: Model,
    classes: Sequence[str] = (),
    text: str = "",
    count: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    max_tokens: int | None = None,
    lengths: str = "",
) -> Iterator[list[Clip]]:
    """Generate clips block by block.

    Args:
        model: generator and final tokenizer.
        classes: names; the clips take them in turn.
        text: a caption instead.
        count: clips, at most `MAX_CLIPS`.
        seed: another seed, other clips; those of `evatok sample` with this seed.
        guidance: s of u + s (c − u); 1 = off; None: the model's own.
        max_tokens: the most that a clip may take.
        lengths: tokens of each block with commas between; empty: the generator's choice.

    Yields:
        All clips of the request, each time a block more.

    Raises:
        EvatokError: both or neither of classes and text, or limits that cannot be obeyed.
    """
    if bool(classes) == bool(text.strip()):
        raise EvatokError("choose a class or write a text: one of the two")
    if not 1 <= count <= MAX_CLIPS:
        raise EvatokError(f"{count} clips asked for: from 1 to {MAX_CLIPS}")
    budget = BudgetConfig(max_tokens=max_tokens, lengths=_numbers(lengths))
    settings = SamplingConfig(guidance=guidance_of(model, guidance), budget=budget)
    titles = [text] * count
    if classes:
        names = model.generator.vocabulary.class_names
        known = [names[label] for label in find_classes(names, classes)]
        titles = [known[place % len(known)] for place in range(count)]
    requests = _requests(model, titles, bool(classes), seed, settings)
    clips = [Clip(title, model.final.num_blocks) for title in titles]
    yield clips
    for block in stream_frames(model.generator, model.final.eval(), requests):
        clips[block.request].parts.append(block.pixels.numpy())
        clips[block.request].blocks.append(block.tokens)
        yield clips


def _requests(
    model: Model, titles: Sequence[str], are_classes: bool, seed: int, settings: SamplingConfig
) -> list[Request]:
    vocabulary = model.generator.vocabulary
    if are_classes:
        labels, sample_indices = labels_of(model, titles)
        seeds = [request_seed(seed, *pair) for pair in zip(labels, sample_indices, strict=True)]
        return class_requests(vocabulary, labels, seeds, settings)
    pieces, condition = model.text.encode(titles), model.generator.text
    assert condition is not None  # model.text has seen to that
    return text_requests(vocabulary, condition, pieces, text_seeds(titles, seed), settings)


def _numbers(lengths: str) -> tuple[int, ...] | None:
    words = [word.strip() for word in lengths.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise EvatokError(f"lengths {lengths!r}: numbers with commas between, such as 64,16,8,8")
    return tuple(map(int, words)) or None


@dataclass(frozen=True)
class Prediction:
    """Frames generated after the first ones of a video.

    Attributes:
        real: the video's own frames as the tokenizer sees them, as many as predicted or fewer.
        predicted: begins with the given frames, reconstructed.
        given: number of given frames.
        psnr: dB over the frames that were not given; None where the video ends before.
    """

    real: Video
    predicted: Video
    given: int
    psnr: float | None


def predict(
    model: Model,
    path: Path | str,
    frames: int = 16,
    start: int = 0,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Prediction:
    """Generate what follows the first frames of a video.

    Args:
        model: a generator that predicts frames, and its tokenizer.
        path: a video.
        frames: of the result, given ones included.
        start: first given frame.
        seed: another seed, another prediction.
        max_tokens: the most that a window may take.

    Raises:
        EvatokError: too few frames in the video, or too many asked for.
    """
    condition = frame_condition(model)
    given, size = condition.num_frames, model.final.config.size
    if not given < frames <= MAX_PREDICTED:
        raise EvatokError(f"{frames} frames asked for: from {given + 1} to {MAX_PREDICTED}")
    if not 0 <= start <= MAX_FRAMES - given:
        raise EvatokError(f"the first given frame is {start}: from 0 to {MAX_FRAMES - given}")
    video = read_start(path, start + frames, max_side=4 * max(sides(size)))
    if len(video) < start + given:
        raise EvatokError(
            f"the video has {len(video)} frames: a prediction from frame {start} takes {given}"
        )
    part = video[start : start + frames]
    predicted = model.predict(part[:given], frames, seed=seed, max_tokens=max_tokens)
    real = Video(resize_crop(part.frames, size), part.rate)
    value = None
    if len(real) == len(predicted):
        value = predicted_psnr(to_clip(predicted.frames), to_clip(real.frames), condition)
    return Prediction(real, predicted, given, value)


@dataclass(frozen=True)
class Comparison:
    """A distance between two sets of videos.

    Attributes:
        value: FVD[nano].
        counts: videos of each side.
    """

    value: float
    counts: tuple[int, int]


def compare(
    first: Sequence[Path | str], second: Sequence[Path | str], folder: Path, device: str = "auto"
) -> Comparison:
    """Measure FVD[nano] between two sets of video files, as `evatok fvd` does by default.

    Args:
        first: video files.
        second: likewise.
        folder: gets two folders of links to them.
        device: where the network works.

    Raises:
        EvatokError: fewer than two videos on a side, or one that cannot be read.
    """
    sides = []
    for name, files in (("first", first), ("second", second)):
        if len(files) < 2:
            raise EvatokError(f"the {name} folder has {len(files)} videos: give 2 or more")
        side = folder / name
        side.mkdir(parents=True)
        for number, file in enumerate(files):
            file = Path(file).resolve()
            (side / f"{number:05d}-{file.name}").symlink_to(file)
        sides.append(side)
    return Comparison(fvd(*sides, features="nano", device=device), (len(first), len(second)))
