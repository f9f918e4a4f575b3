"""Token counts of a video's blocks and tiles: a rule for each clip, or a budget for all.

Shape letters: F frames, N tiles, T blocks, S side of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evatok.core.compute.devices import device_of
from evatok.core.errors import EvatokError
from evatok.core.processes.threads import side_by_side
from evatok.hub import Models
from tokenizer.coding.exact import ExactEncoder
from tokenizer.evt.bits import bit_width, write_varints
from tokenizer.evt.budget import GRID, PARTS, BudgetAssigner, BudgetError, enclose
from tokenizer.evt.codec import Assign, Timed, clips_of_chunk, in_batches, runs, ticks_of
from tokenizer.evt.equal_slope import Frontier, PlannedAssigner, equal_slope, frontier
from tokenizer.evt.format import CHUNK, MAX_PAYLOAD, Header, header_bytes, times_bytes
from tokenizer.evt.pictures import Fit, to_coded
from tokenizer.model import VideoTokenizer
from tokenizer.search.candidates import candidate_errors
from tokenizer.search.reward import psnr_of_mse
from tokenizer.tokens import Tokens

FILE_OVERHEAD = CHUNK.size + 12 + 8  # bytes around the rows of the index, and of the end


@dataclass(frozen=True)
class Rate:
    """Rule for the number of tokens; one of the three budgets at most.

    Attributes:
        assignment: as `tokenizer.search.assigners` reads it.
        max_tokens: the most that a clip of one tile may take.
        tokens_per_second: of the whole video, on average.
        max_bytes: of the whole file, with its sound.
        min_psnr: dB, least PSNR of the video as the tokenizer sees it.
    """

    assignment: str = "router"
    max_tokens: int | None = None
    tokens_per_second: float | None = None
    max_bytes: int | None = None
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise EvatokError(f"give one budget, not {' and '.join(given)}")
        if given and (self.assignment not in ("router", "best") or self.max_tokens is not None):
            raise EvatokError(
                f"{given[0]} chooses the assignments, with the router or by --assignment best: "
                "leave out --quality, --max-tokens and any other assignment"
            )
        for name in given:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise EvatokError(f"{name} {value} is not a positive number")

    BUDGETS = ("tokens_per_second", "max_bytes", "min_psnr")

    @property
    def budget(self) -> str | None:
        """Name of the budget that is given."""
        return next((name for name in self.BUDGETS if getattr(self, name) is not None), None)

    def describe(self) -> str:
        """The rule in a few words, as the header keeps it."""
        if self.budget is not None:
            best = "best " if self.assignment == "best" else ""
            return f"{best}{self.budget}:{getattr(self, self.budget):g}"
        return self.assignment + ("" if self.max_tokens is None else f" at most {self.max_tokens}")


def tiles_of(
    header: Header, frames: Iterator[Timed], batch_size: int, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Whole clips of all tiles, (N, 3, F, S, S) in [−1, 1], `batch_size` of a chunk at a time."""
    for run in runs(frames, header.frames_per_chunk):
        for tiles in in_batches(_clips_of(header, run), batch_size):
            yield tiles if device is None else tiles.to(device)


def _clips_of(header: Header, run: list[Timed]) -> Iterator[Tensor]:
    """Tiles of each whole clip of a chunk's frames."""
    pictures = torch.from_numpy(np.stack([picture for _, picture in run]))
    return clips_of_chunk(to_coded(pictures, cast(Fit, header.fit), header.size), header)


def router_for(models: Models, rate: Rate) -> Any:
    """The router that a rule asks, or None."""
    kind, _, value = rate.assignment.partition(":")
    if kind != "router":
        return None
    return models.conditioned_router if value or rate.budget else models.router


def assigner_for(
    models: Models,
    encoder: ExactEncoder,
    header: Header,
    rate: Rate,
    frames: Callable[[], Iterator[Timed]],
    sound_bytes: int,
    batch_size: int,
) -> Assign:
    """Router or assigner of each clip.

    Args:
        models: with a tokenizer and a router.
        encoder: of the same.
        header: of the file to be written.
        rate: the rule or the budget.
        frames: begins a pass over the video.
        sound_bytes: of the file, taken by the sound, which count for `max_bytes`.
        batch_size: tiles computed at once.
    """
    kind, _, value = rate.assignment.partition(":")
    if kind == "best" and rate.budget is not None:
        return _planned(encoder.model, header, rate, frames, sound_bytes)
    chosen = models.assigner(rate.assignment, rate.max_tokens)  # refuses what does not fit
    if kind != "router":  # one by one: what a clip gets must not depend on its neighbours
        return lambda clips: torch.cat([chosen(clip) for clip in clips.split(1)])
    if rate.budget is None:
        return partial(
            encoder.assign, w_q=float(value) if value else None, max_tokens=rate.max_tokens
        )

    def at(clips: Tensor, w_q: float) -> Tensor:
        return encoder.assign(clips, w_q=w_q)

    def fill(clip: Tensor, w_q: float, tokens: int) -> Tensor:
        return encoder.assign(clip, w_q=w_q, max_tokens=tokens, is_full=True)

    if not models.conditioned_router.config.preference:
        raise EvatokError(f"a budget ({rate.budget}) needs a router with w_q as an input")
    if rate.min_psnr is not None:
        w_q = _w_q_of_psnr(encoder, header, rate.min_psnr, frames, batch_size)
        return partial(encoder.assign, w_q=w_q)
    budget, extent = _tokens_of(header, rate, frames, sound_bytes)
    device = device_of(encoder.model)
    try:
        ends = enclose(lambda: tiles_of(header, frames(), batch_size, device), at, budget)
    except BudgetError as error:
        raise extent.refusal(error, header, rate, sound_bytes) from error
    return BudgetAssigner(at, fill, *ends, budget)


def _tokens_of(
    header: Header, rate: Rate, frames: Callable[[], Iterator[Timed]], sound_bytes: int
) -> tuple[float, _Extent]:
    """Tokens that a budget of tokens a second or of bytes leaves for the whole video."""
    extent = _Extent.from_frames(header, frames(), min(rate.max_bytes or MAX_PAYLOAD, MAX_PAYLOAD))
    if rate.tokens_per_second is not None:
        return rate.tokens_per_second * extent.seconds, extent
    assert rate.max_bytes is not None
    bits = 8 * (rate.max_bytes - sound_bytes - extent.fixed_bytes) - extent.level_bits
    return bits / bit_width(header.codebook_size), extent


def _planned(
    model: VideoTokenizer,
    header: Header,
    rate: Rate,
    frames: Callable[[], Iterator[Timed]],
    sound_bytes: int,
) -> PlannedAssigner:
    """The assignments that a budget buys by equal slope, from every candidate of every tile."""
    tiles: list[Frontier] = []
    sizes: list[int] = []  # blocks of each tile: fewer where the video ends

    def measured(clip: Tensor) -> Frontier:  # one clip by one thread: the same on any machine
        blocks = clip.shape[2] // header.frames_per_block
        lengths = model.levels.candidates(blocks).sum(1).numpy()
        errors = candidate_errors(model, clip.to(device_of(model))).cpu()[0].double() * blocks
        return frontier(lengths, errors.numpy())

    for run in runs(frames(), header.frames_per_chunk):
        for clips, blocks in zip(_clips_of(header, run), header.blocks(len(run)), strict=True):
            parts = clips[:, :, : blocks * header.frames_per_block].split(1)
            tiles += side_by_side(measured, parts)
            sizes += [blocks] * len(parts)
    if rate.min_psnr is None:
        budget, extent = _tokens_of(header, rate, frames, sound_bytes)
        try:
            chosen = equal_slope(tiles, budget)
        except BudgetError as error:
            raise extent.refusal(error, header, rate, sound_bytes) from error
    else:
        least = sum(float(tile.errors[-1]) for tile in tiles) / sum(sizes)
        wanted = 4 * 10 ** (-rate.min_psnr / 10)  # of values in [−1, 1]
        if least > wanted:
            best = float(psnr_of_mse(torch.tensor([least])))
            raise EvatokError(f"no assignment reaches {rate.min_psnr:g} dB: the best is {best:.2f}")
        chosen = equal_slope(tiles, math.inf, wanted * sum(sizes))
    plan = torch.full((len(tiles), model.num_blocks), model.levels.values[0])
    for row, number, blocks in zip(plan, chosen, sizes, strict=True):
        row[:blocks] = model.levels.candidates(blocks)[number]
    return PlannedAssigner(plan)


@dataclass
class _Extent:
    """Length of a video, and bytes of its file before the first token.

    Attributes:
        seconds: its last frame lasts as long as the mean.
        fixed_bytes: of everything but tokens, levels and sound; a few too many.
        level_bits: of the blocks' levels.
        num_chunks: runs of frames.
    """

    seconds: float
    fixed_bytes: int
    level_bits: int
    num_chunks: int

    @staticmethod
    def from_frames(header: Header, frames: Iterator[Timed], longest: int) -> _Extent:
        """Measure in one pass over the frames; `longest`: bytes that no chunk exceeds."""
        fixed, blocks, count = len(header_bytes(header)) + FILE_OVERHEAD, 0, 0
        chunks = 0
        first = last = Fraction(0)
        previous, begins = None, 0
        for run in runs(frames, header.frames_per_chunk):
            ticks = ticks_of((time for time, _ in run), header, previous)
            fixed += CHUNK.size + len(times_bytes(ticks)) + 1  # the last byte may be half empty
            fixed += len(write_varints([longest, len(ticks), ticks[0] - begins]))  # the index
            blocks += sum(header.blocks(len(run))) * len(header.grid)
            previous, begins = ticks[-1], ticks[0]
            first, last = (first if count else run[0][0]), run[-1][0]
            count += len(run)
            chunks += 1
        span = last - first
        seconds = float(span * Fraction(count, count - 1)) if span else 1.0
        return _Extent(seconds, fixed, blocks * bit_width(len(header.levels)), chunks)

    def refusal(
        self, error: BudgetError, header: Header, rate: Rate, sound_bytes: int
    ) -> EvatokError:
        """Return the error of a budget that is too small, in the budget's own unit."""
        if rate.max_bytes is None:
            return error
        bits = error.least * bit_width(header.codebook_size) + self.level_bits
        longer = 4 * self.num_chunks + 16  # numbers of the index and header, of a larger budget
        least = sound_bytes + self.fixed_bytes + longer + math.ceil(bits / 8)
        sound = f", {sound_bytes} of them for its sound" if sound_bytes else ""
        remedy = ", leave the sound out with --no-sound" if sound_bytes else ""
        return EvatokError(
            f"max_bytes {rate.max_bytes}: this file takes {least} at least{sound}: allow so many"
            f"{remedy}, or encode a shorter part of it"
        )


def _w_q_of_psnr(
    encoder: ExactEncoder,
    header: Header,
    wanted: float,
    frames: Callable[[], Iterator[Timed]],
    batch_size: int,
) -> float:
    """The least w_q at which the video's PSNR, over all tiles, is at least the wanted one."""

    def reached(grid: Sequence[float]) -> list[float]:
        errors, count = [0.0] * len(grid), 0
        size = min(batch_size, 32)  # not more, however many: sums of floats depend on it
        for part in tiles_of(header, frames(), size, device_of(encoder.model)):
            for place, w_q in enumerate(grid):
                tokens = encoder.encode(part, encoder.assign(part, w_q=w_q))
                errors[place] += float(
                    (_decode(encoder.model, tokens) - part).square().mean((1, 2, 3, 4)).sum()
                )
            count += len(part)
        return psnr_of_mse(torch.tensor(errors) / count).tolist()

    values = reached(GRID)
    place = next((place for place, value in enumerate(values) if value >= wanted), None)
    if place is None:
        raise EvatokError(
            f"no assignment of this router reaches {wanted:g} dB: the best is {max(values):.2f}"
        )
    if place == 0:
        return GRID[0]
    step = (GRID[place] - GRID[place - 1]) / PARTS
    inner = [GRID[place - 1] + step * part for part in range(1, PARTS)]
    pairs = zip(inner, reached(inner), strict=True)
    return next((w_q for w_q, value in pairs if value >= wanted), GRID[place])


@torch.no_grad()
def _decode(model: VideoTokenizer, tokens: Tokens) -> Tensor:
    return model.decode(tokens).float().clamp(-1, 1)
