"""Clips out of nothing but a class, or out of their first frames.

Shape letters: B batch, F frames, T blocks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.quality import psnr
from evatok.core.errors import EvatokError
from evatok.core.paths import refuse_overwrite, short_name
from evatok.core.suggest import did_you_mean
from evatok.hub import Models
from evatok.report.drawing import Panel, compose
from generator.conditions import FrameCondition
from generator.inference.engine import sample
from generator.inference.requests import Request, SamplingConfig, class_requests
from generator.inference.rollout import continue_clips
from tokenizer.model import VideoTokenizer
from tokenizer.tokens import Tokens
from video.clips import to_clip, to_frames
from video.decoding.container import Damage
from video.reading import damage_of, probe, read_frames
from video.writing import write_video

BATCH = 32
GUIDANCE = 2.0  # of generators that were exported before they told theirs

ClipsDone = Callable[[int], None]  # clips done


def request_seed(seed: int, *place: int) -> int:
    """A seed for one clip, unrelated to that of its neighbours, whatever else is sampled."""
    words = np.random.SeedSequence((seed, *place)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1  # below 2^63


def guidance_of(models: Models, asked: float | None) -> float:
    """The scale that is asked for, else the generator's own, else `GUIDANCE`."""
    if asked is not None:
        return asked
    own = models.generator.guidance
    return GUIDANCE if own is None else own


def find_classes(class_names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Labels of the classes with these names, any case; all if none is named.

    Raises:
        EvatokError: an unknown name, or a model without classes.
    """
    if not class_names:
        raise EvatokError("this generator has no classes")
    if not wanted:
        return list(range(len(class_names)))
    by_name = {name.casefold(): label for label, name in enumerate(class_names)}
    unknown = [name for name in wanted if name.casefold() not in by_name]
    if unknown:
        near = did_you_mean(unknown[0], class_names)
        raise EvatokError(
            f"no class {', '.join(unknown)}; there are {', '.join(class_names)}{near}"
        )
    return [by_name[name.casefold()] for name in wanted]


def labels_of(models: Models, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """The generator's label of each class name, and how many of that class came before it.

    Raises:
        EvatokError: it does not know one of them.
    """
    known = {name: label for label, name in enumerate(models.generator.vocabulary.class_names)}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise EvatokError(f"the generator has no class {', '.join(unknown)}")
    counts: dict[str, int] = {}
    sample_indices = []
    for name in names:
        sample_indices.append(counts.get(name, 0))
        counts[name] = sample_indices[-1] + 1
    return [known[name] for name in names], sample_indices


def run_requests(
    models: Models, requests: Sequence[Request], progress: ClipsDone | None = None
) -> tuple[Tensor, Tokens]:
    """Generate and decode.

    Returns:
        (B, 3, F, H, W) float32 in [−1, 1], and their tokens.
    """
    clips: list[Tensor] = []
    tokens: list[Tokens] = []
    for start in range(0, len(requests), 4 * BATCH):
        tokens.append(sample(models.generator, requests[start : start + 4 * BATCH], BATCH))
        clips.append(decode(models.final, tokens[-1]))
        if progress is not None:
            progress(sum(map(len, clips)))
    return torch.cat(clips), Tokens.cat(tokens)


@torch.no_grad()
def decode(tokenizer: VideoTokenizer, tokens: Tokens, part: int = BATCH) -> Tensor:
    """Pixels of tokens, some clips at a time: (B, 3, F, H, W) float32 in [−1, 1]."""
    blocks, device = tokens.blocks(), next(tokenizer.parameters()).device
    parts = [blocks[start : start + part] for start in range(0, len(blocks), part)]
    clips = []
    for rows in parts:
        decoded = tokenizer.decode(Tokens.from_blocks(rows).to(device))
        clips.append(decoded.float().clamp(-1, 1).cpu())
    return torch.cat(clips)


def sample_labels(
    models: Models,
    labels: Sequence[int],
    sample_indices: Sequence[int],
    seed: int,
    settings: SamplingConfig,
    progress: ClipsDone | None = None,
) -> tuple[Tensor, Tokens]:
    """One clip for each label; the i-th clip of a class is the same whatever else is asked for.

    Args:
        models: generator and final tokenizer.
        labels: class of each clip.
        sample_indices: the i of each clip.
        seed: of all clips together.
        settings: how tokens are chosen.
        progress: told now and then.

    Returns:
        (B, 3, F, H, W) float32 in [−1, 1], and their tokens.
    """
    seeds = [request_seed(seed, a, b) for a, b in zip(labels, sample_indices, strict=True)]
    requests = class_requests(models.generator.vocabulary, labels, seeds, settings)
    return run_requests(models, requests, progress)


def frame_condition(models: Models) -> FrameCondition:
    """Frame condition of the generator.

    Raises:
        EvatokError: it does not.
    """
    if models.generator.frames is None:
        raise EvatokError(f"the generator in {models.directory} was not trained to predict frames")
    return models.generator.frames


def predict_clips(
    models: Models, clips: Tensor, seeds: Sequence[int], settings: SamplingConfig
) -> tuple[Tensor, Tokens]:
    """The rest of clips from their first frames.

    Args:
        models: generator and final tokenizer.
        clips: (B, 3, F, H, W) float32 in [−1, 1], at least the given frames; more are ignored.
        seeds: one a clip.
        settings: how tokens are chosen; guidance is off, as a frame condition has no opposite.

    Returns:
        Whole clips (B, 3, F, H, W) float32 in [−1, 1], the given ones reconstructed, and tokens.
    """
    frame_condition(models)
    length = models.final.config.num_frames
    done = continue_clips(
        models.generator, models.final, clips, length, seeds, settings, batch_size=BATCH
    )
    return done.videos, done.windows[0]


def write_samples(
    models: Models,
    clips: Tensor,
    tokens: Tokens,
    titles: Sequence[str],
    files: Sequence[Path],
    *,
    fps: float,
    plain: bool,
) -> list[dict[str, Any]]:
    """Write one mp4 a clip.

    Args:
        models: final tokenizer, for its levels.
        clips: (B, 3, F, H, W) float32 in [−1, 1].
        tokens: of the clips.
        titles: shown above each.
        files: where to.
        fps: of the files.
        plain: the clip alone, without title and bars.

    Returns:
        JSON-able: file, tokens and assignment of each.
    """
    rows = []
    for clip, title, path, blocks in zip(
        clips, titles, files, tokens.assignment.tolist(), strict=True
    ):
        frames = to_frames(clip).numpy()
        if not plain:
            top = models.final.levels.values[-1]
            frames = compose([Panel(title, frames)], blocks, top)
        write_video(path, frames, fps)
        rows.append({"file": str(path), "tokens": sum(blocks), "assignment": blocks})
    return rows


def predict_file(
    models: Models,
    file: Path,
    count: int,
    seed: int,
    settings: SamplingConfig,
    output: Path,
    *,
    num_frames: int | None = None,
    start: int = 0,
    plain: bool = False,
    allow_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict the frames that follow the first ones of a video, and write one mp4 a prediction.

    Args:
        models: generator and final tokenizer.
        file: any video with enough frames for the condition.
        count: predictions.
        seed: another seed, other predictions.
        settings: how tokens are chosen, of each window.
        output: folder.
        num_frames: of a prediction, given ones included; those of a clip if None. More than that
            are predicted window by window, see `generator.inference.rollout`.
        start: frame at which the condition begins.
        plain: the prediction alone, at the tokenizer's size.
        allow_damaged: take the frames that can be decoded of a damaged file.
        progress: told the windows done and all.

    Returns:
        JSON-able: `predictions` with file, tokens, assignment (window after window) and, where the
        video goes on long enough to compare with, PSNR of the frames that were not given;
        `damaged`, what the file has lost, if it was allowed.
    """
    if count < 1 or start < 0:
        raise EvatokError(f"count {count} must be at least 1 and start {start} at least 0")
    condition, model = frame_condition(models), models.final
    stem = short_name(file.stem, 40)
    paths = [output / f"{stem}-{seed}-{place:03d}.mp4" for place in range(count)]
    refuse_overwrite([output, *paths], [file, models.directory])
    length = num_frames or model.config.num_frames
    info = probe(file)
    lost = damage_of(file) if allow_damaged else None
    told: list[Damage] = []  # only of the frames up to the last that is wanted
    on_damage = None if lost is None else told.append
    frames = read_frames(file, start, length, size=model.config.size, on_damage=on_damage)
    if len(frames) < condition.num_frames:
        raise EvatokError(
            f"{file} has {len(frames)} frames from {start} on; "
            f"the prediction starts from {condition.num_frames}"
        )
    real = frames if len(frames) == length else None
    clip = to_clip(frames)[None]
    done = continue_clips(
        models.generator,
        model,
        clip[:, :, : condition.num_frames].repeat(count, 1, 1, 1, 1),
        length,
        [request_seed(seed, place) for place in range(count)],
        settings,
        batch_size=BATCH,
        progress=progress,
    )
    rows = []
    for place, predicted in enumerate(done.videos):
        windows = [tokens.assignment[place].tolist() for tokens in done.windows]
        shown = to_frames(predicted).numpy()
        if not plain:
            panels = [Panel(f"first {condition.num_frames} frames given", shown)]
            if real is not None:
                panels.insert(0, Panel("real", real.numpy()))
            shown = _with_bars(models, panels, windows)
        path = paths[place]
        write_video(path, shown, info.fps)
        rows.append(
            {
                "output": str(path),
                "tokens": sum(map(sum, windows)),
                "assignment": [tokens for window in windows for tokens in window],
                "psnr": None if real is None else predicted_psnr(predicted, clip[0], condition),
            }
        )
    return {
        "file": str(file),
        "frames": length,
        "windows": len(done.windows),
        "given_frames": condition.num_frames,
        "given_blocks": condition.kept_blocks,
        "predictions": rows,
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "seed": seed,
        **({} if lost is None else {"damaged": str(lost)}),
    }


def _with_bars(
    models: Models, panels: Sequence[Panel], windows: Sequence[Sequence[int]]
) -> np.ndarray:
    """Panels of a prediction with the tokens of each window under the frames that it made."""
    condition, config = frame_condition(models), models.final.config
    pictures: list[np.ndarray] = []
    for number, blocks in enumerate(windows):
        first = number * (config.num_frames - condition.num_frames)
        part = slice(first, first + config.num_frames)
        drawn = compose(
            [Panel(panel.title, panel.frames[part]) for panel in panels],
            blocks,
            models.final.levels.values[-1],
            caption=f"window {number + 1}" if len(windows) > 1 else "",
            given_blocks=condition.kept_blocks,
            frames_per_block=condition.frames_per_block,
        )
        pictures.append(drawn[condition.num_frames :] if number else drawn)
    return np.concatenate(pictures)


def predicted_psnr(predicted: Tensor, real: Tensor, condition: FrameCondition) -> float:
    """PSNR in dB over the frames of clips (3, F, H, W) that were not given."""
    rest = slice(condition.num_frames, None)
    return float(psnr(predicted[None, :, rest], real[None, :, rest])[0])
