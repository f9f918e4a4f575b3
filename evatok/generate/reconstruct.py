"""Videos of any length and size through the tokenizer, with the tokens spent drawn under them.

A video is read, reconstructed and written some clips at a time, so its length does not matter.

Shape letters: F frames, N clips, T blocks, H W pixels.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.quality import Quality
from evatok.core.errors import EvatokError
from evatok.core.paths import refuse_overwrite, short_name
from evatok.report.drawing import Panel, compose
from tokenizer.coding.codec import Codec
from tokenizer.coding.rate import Rate
from video.clips import resize_crop, to_clip
from video.decoding.container import Damage, VideoError
from video.io import OnDamage, frame_times, iter_timed, probe, write_video

logger = logging.getLogger(__name__)

CLIPS_AT_ONCE = 16

Progress = Callable[[str, int, int | None], None]  # file, frames done, frames in all if known


@dataclass
class ClipScores:
    """What is known of the clips gone through so far.

    Attributes:
        networks: each gets every whole clip, real and reconstructed.
        rate: of all tokens.
        quality: of all clips, over the frames that the video has.
    """

    networks: Sequence[FeatureNetwork]
    rate: Rate
    quality: Quality = field(default_factory=Quality)
    real: list[list[Tensor]] = field(default_factory=list)
    fake: list[list[Tensor]] = field(default_factory=list)

    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take in clips (N, 3, F, H, W) in [−1, 1] and their reconstructions."""
        self.real.append([network(real) for network in self.networks])
        self.fake.append([network(fake) for network in self.networks])

    @contextmanager
    def whole_file(self) -> Iterator[None]:
        """Take in all clips of a file, or none if it turns out to be damaged."""
        before = copy.deepcopy((self.rate, self.quality)), len(self.real)
        try:
            yield
        except VideoError:
            (self.rate, self.quality), count = before
            del self.real[count:], self.fake[count:]
            raise

    def compute(self) -> dict[str, float | None]:
        """Quality and rate; `fvd[name]` of each network, None of fewer than two clips."""
        named = ("psnr_frame", "psnr_pooled", "moving_psnr", "ssim", "flicker")
        quality = self.quality.compute()
        out: dict[str, float | None] = {name: quality.get(name) for name in named}
        out |= self.rate.compute()
        for place, network in enumerate(self.networks):
            real, fake = (
                torch.cat([row[place] for row in side]) if side else torch.zeros(0, network.dim)
                for side in (self.real, self.fake)
            )
            out[f"fvd[{network.name}]"] = frechet_distance(real, fake) if len(real) > 1 else None
        return out


def reconstruct_files(
    codec: Codec,
    files: Sequence[Path],
    output: Path,
    *,
    networks: Sequence[FeatureNetwork] = (),
    plain: bool = False,
    allow_damaged: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reconstruct videos and write one mp4 for each.

    Args:
        codec: tokenizer and assigner.
        files: one that cannot be read is named, and the others are reconstructed.
        output: folder; a file is written whole or not at all.
        networks: Fréchet distances over all clips are added for these.
        plain: write the reconstruction alone, at the tokenizer's size.
        allow_damaged: reconstruct every frame that can be decoded of a damaged file.
        progress: told after every few clips.

    Returns:
        JSON-able: `files` (each with frames, psnr, tokens and every clip's assignment), totals;
        `damaged` has the files that were left out, and those that have lost frames, with a reason.
        `psnr` is the mean of the values of clips, `psnr_frame` of frames, `psnr_pooled` that of the
        mean error (see `evaluation.metrics.quality`; moving_psnr, ssim and flicker too); bits and
        use of the codebook are those of `tokenizer.coding.rate`.

    Raises:
        VideoError: no file could be read; the first is named.
        EvatokError: two files would be written under one name, or one over an input.
    """
    targets = _targets(files, output)
    refuse_overwrite(targets, files)
    config = codec.model.config
    scores = ClipScores(networks, Rate(config.codebook_size, len(codec.model.levels)))
    results: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    first: VideoError | None = None
    for file, target in zip(files, targets, strict=True):
        lost: list[Damage] = []
        try:
            on_damage = lost.append if allow_damaged else None
            with scores.whole_file():
                row = _reconstruct_file(codec, file, target, scores, plain, on_damage, progress)
        except VideoError as error:
            first = first or error
            logger.warning("left out: %s", error)
            damaged.append({"file": str(file), "frames": 0, "reason": str(error)})
            continue
        results.append(row)
        for damage in lost:
            logger.warning("%s: %s", file, damage)
            damaged.append(
                {"file": str(file), "frames": damage.decoded, "expected": damage.expected,
                 "reason": str(damage)}
            )  # fmt: skip
    if not results:
        assert first is not None
        raise first
    clips = [clip for result in results for clip in result["clips"]]
    summary = {
        "num_files": len(results),
        "num_clips": len(clips),
        "frames": sum(result["frames"] for result in results),
        "psnr": sum(clip["psnr"] for clip in clips) / len(clips),
        "tokens": sum(clip["tokens"] for clip in clips),
        "tokens_per_clip": sum(clip["tokens"] for clip in clips) / len(clips),
    }
    return {"files": results, "damaged": damaged, **summary, **scores.compute()}


def require_all_read(result: dict[str, Any]) -> None:
    """Check that a result of `reconstruct_files` leaves no file out.

    Raises:
        VideoError: it does; they are named, each with its reason.
    """
    out = [row["reason"] for row in result["damaged"] if not row["frames"]]
    if out:
        total = len(out) + result["num_files"]
        raise VideoError(f"{len(out)} of {total} files could not be read: {'; '.join(out)}")


def _targets(files: Sequence[Path], output: Path) -> list[Path]:
    """One name a file: its own, and that of its folder too where two files share one."""
    stems = [file.stem for file in files]
    names = [
        stem if stems.count(stem) == 1 else f"{stem}-{file.suffix.removeprefix('.')}"
        for file, stem in zip(files, stems, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise EvatokError(f"several files are called {', '.join(twice)}: reconstruct them apart")
    return [output / f"{short_name(name, 4)}.mp4" for name in names]


def _reconstruct_file(
    codec: Codec,
    file: Path,
    target: Path,
    scores: ClipScores,
    plain: bool,
    on_damage: OnDamage | None,
    progress: Progress | None,
) -> dict[str, Any]:
    info, timing = probe(file), frame_times(file)
    times: deque[Fraction] = deque()  # of the frames that are read and not yet written
    clips: list[dict[str, Any]] = []

    def pictures() -> Iterator[np.ndarray]:
        done = 0
        for chunk in _chunks(codec, file, on_damage, times):
            for picture in _reconstruct_chunk(codec, chunk, clips, scores, plain):
                yield from picture
            done += len(chunk)
            if progress is not None:
                progress(file.name, done, info.num_frames)

    kept = None if timing.is_even else iter(times.popleft, None)
    write_video(target, pictures(), info.fps, times=kept)
    return {
        "file": str(file),
        "output": str(target),
        "frames": clips[-1]["end"],
        "size": [info.width, info.height],
        "fps": info.fps,
        "psnr": sum(clip["psnr"] for clip in clips) / len(clips),
        "tokens": sum(clip["tokens"] for clip in clips),
        "clips": clips,
    }


def _chunks(
    codec: Codec, file: Path, on_damage: OnDamage | None, times: deque[Fraction]
) -> Iterator[Tensor]:
    """Frames (F, S, S, 3) uint8 of some whole clips at a time; the last one may be short.

    Their times are added to `times` before.
    """
    size = codec.model.config.size
    wanted = codec.model.config.num_frames * CLIPS_AT_ONCE
    frames: list[Tensor] = []
    for time, frame in iter_timed(file, on_damage):
        times.append(time)
        frames.append(resize_crop(torch.from_numpy(np.ascontiguousarray(frame))[None], size))
        if len(frames) == wanted:
            yield torch.cat(frames)
            frames = []
    if frames:
        yield torch.cat(frames)


def _reconstruct_chunk(
    codec: Codec,
    chunk: Tensor,
    clips: list[dict[str, Any]],
    scores: ClipScores,
    plain: bool,
) -> Iterator[np.ndarray]:
    """Pictures (F, H, W, 3) of each clip of a chunk; what was spent is added to `clips`."""
    length = codec.model.config.num_frames
    coded = codec.reconstruct(chunk)
    original, decoded = coded.original.numpy(), coded.frames.numpy()
    start = clips[-1]["end"] if clips else 0
    scores.rate.update(coded.tokens, coded.original[..., 0].numel())
    for index, blocks in enumerate(coded.tokens.assignment.tolist()):
        part = slice(index * length, min(len(chunk), (index + 1) * length))
        clips.append(
            {
                "start": start + part.start,
                "end": start + part.stop,
                "assignment": blocks,
                "tokens": sum(blocks),
                "psnr": float(coded.psnr[index]),
            }
        )
        real, fake = (to_clip(x[part])[None] for x in (coded.original, coded.frames))
        scores.quality.update(fake, real)
        if scores.networks and part.stop - part.start == length:
            scores.update(real, fake)
        if plain:
            yield decoded[part]
            continue
        # A clip that the video does not fill shows the blocks that have frames.
        yield compose(
            [Panel("original", original[part]), Panel("reconstruction", decoded[part])],
            blocks,
            codec.model.levels.values[-1],
            caption=f"clip {len(clips)}",
            frames_per_block=length // len(blocks),
        )
