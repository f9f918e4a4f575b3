"""Videos of any length and size through the tokenizer, with the tokens spent drawn under them.

Frames go through the encoder and decoder of token files, chunk by chunk, so a video's length does
not matter, and a reconstruction is what `evatok encode` and `evatok decode` give.

Shape letters: F frames, N tiles, T blocks, H W pixels.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.quality import SSIM_WINDOW, Quality
from evatok.core.errors import EvatokError
from evatok.core.paths import refuse_overwrite, short_name
from evatok.generate.decoding import FileProgress
from evatok.generate.token_file import (
    EncodeSettings,
    encode_frames,
    frames_of,
    header_of_file,
    part_of,
)
from evatok.generate.token_rate import Rate
from evatok.hub import Models
from evatok.report.drawing import Panel, compose
from tokenizer.coding.rate import Rate as TokenRate
from tokenizer.evt.codec import ChunkDecoder, DecodedClip, Timed, runs
from tokenizer.evt.format import Header
from tokenizer.evt.pictures import Fit, to_coded
from tokenizer.evt.writer import sound_size
from tokenizer.search.reward import psnr_of_mse
from video.clips import resize, resize_crop, to_clip
from video.decoding.container import Damage, VideoError
from video.reading import OnDamage, probe
from video.timed import copy_sound, write_timed

logger = logging.getLogger(__name__)

PANEL = 256  # least number of pixels of a panel's longer side


@dataclass
class ClipScores:
    """Accumulated measures of the clips so far.

    Attributes:
        networks: each gets the middle square of every whole clip, real and reconstructed.
        rate: of all tokens.
        quality: of all clips, over the frames that the video has.
    """

    networks: Sequence[FeatureNetwork]
    rate: TokenRate
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
        quality = self.quality.compute() if self.quality.frames else {}
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
    models: Models,
    files: Sequence[Path],
    output: Path,
    rate: Rate | None = None,
    settings: EncodeSettings | None = None,
    *,
    networks: Sequence[FeatureNetwork] = (),
    plain: bool = False,
    smooth: bool = True,
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Reconstruct videos and write one mp4 for each, with its times and sound.

    Args:
        models: with a tokenizer (`final`) and a router.
        files: one that cannot be read is named, and the others are reconstructed.
        output: folder; a file is written whole or not at all.
        rate: how many tokens to spend; the router's choice if None.
        settings: see `EncodeSettings`; by default the whole picture at its own size, in tiles.
        networks: Fréchet distances over all clips are added for these, of the middle square at the
            tokenizer's size.
        plain: write the reconstruction alone, as `evatok decode` does.
        smooth: spread the jumps between clips (`tokenizer.evt.borders`).
        progress: told after every few clips.

    Returns:
        JSON-able: `files` (each with frames, psnr, tokens and every clip's assignment, summed over
        its tiles), totals; `damaged` has the files that were left out, and those that have lost
        frames, with a reason. `psnr` is the mean of the values of clips, `psnr_frame` of frames,
        `psnr_pooled` that of the mean error (see `evaluation.metrics.quality`; moving_psnr, ssim
        and flicker too; None of pictures with a side below 11 pixels), all of the picture at the
        size at which it is coded; bits and use of the codebook are those of
        `tokenizer.coding.rate`.

    Raises:
        VideoError: no file could be read; the first is named.
        EvatokError: two files would be written under one name, or one over an input.
    """
    rate, settings = rate or Rate(), settings or EncodeSettings()
    targets = _targets(files, output)
    refuse_overwrite(targets, files)
    model = models.final
    models.assigner(rate.assignment, rate.max_tokens)  # refuses what does not fit, before any file
    scores = ClipScores(networks, TokenRate(model.config.codebook_size, len(model.levels)))
    results: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    first: VideoError | None = None
    for file, target in zip(files, targets, strict=True):
        lost: list[Damage] = []
        try:
            on_damage = lost.append if settings.allow_damaged else None
            with scores.whole_file():
                row = _reconstruct_file(
                    models, file, target, rate, settings, scores, plain, smooth, on_damage, progress
                )
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
    models: Models,
    file: Path,
    target: Path,
    rate: Rate,
    settings: EncodeSettings,
    scores: ClipScores,
    plain: bool,
    smooth: bool,
    on_damage: OnDamage | None,
    progress: FileProgress | None,
) -> dict[str, Any]:
    info, header = probe(file), header_of_file(models, file, rate, settings)
    ignored: OnDamage | None = None if on_damage is None else lambda _: None
    decoder = ChunkDecoder(header, models.final.eval())
    clips: list[dict[str, Any]] = []

    def pictures(spent: int) -> Iterator[tuple[int, np.ndarray]]:
        # The source is read twice, side by side: the encoder keeps no frames.
        real = runs(frames_of(file, settings, on_damage), header.num_frames)
        chunks = encode_frames(
            models,
            header,
            rate,
            lambda: frames_of(file, settings, ignored),
            settings,
            sound_bytes=spent,
        )
        for run, clip in zip(real, decoder.clips(chunks, smooth=smooth), strict=True):
            shown = _shown(header, run, clip, clips, scores, plain)
            yield from zip(clip.times, shown, strict=True)
            if progress is not None:
                progress(file.name, clip.stop, info.num_frames)

    with tempfile.TemporaryDirectory(prefix="evatok-") as folder:
        track = Path(folder) / "sound.mka"
        is_heard = settings.sound and copy_sound(file, track, *part_of(file, settings))
        sound = track if is_heard else None
        spent = 0 if sound is None else sound_size(sound.stat().st_size)
        made = pictures(spent)
        first = next(made)  # a file that is refused leaves no folder
        write_timed(target, chain([first], made), header.tick, sound)
    return {
        "file": str(file),
        "output": str(target),
        "frames": clips[-1]["end"],
        "size": [info.width, info.height],
        "coded": [header.width, header.height],
        "tiles": len(header.grid),
        "fps": info.fps,
        "sound": sound is not None,
        "psnr": sum(clip["psnr"] for clip in clips) / len(clips),
        "tokens": sum(clip["tokens"] for clip in clips),
        "clips": clips,
    }


def _shown(
    header: Header,
    run: list[Timed],
    clip: DecodedClip,
    clips: list[dict[str, Any]],
    scores: ClipScores,
    plain: bool,
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of a clip as they are written; what was spent is added to `clips`."""
    pictures = torch.from_numpy(np.stack([picture for _, picture in run]))
    real, fake = to_coded(pictures, cast(Fit, header.fit), header.size), clip.pictures
    blocks = clip.tokens.assignment.sum(0).tolist()
    scores.rate.update(clip.tokens, real[..., 0].numel())
    clips.append(
        {
            "start": clip.first,
            "end": clip.stop,
            "assignment": blocks,
            "tokens": sum(blocks),
            "psnr": _psnr(real, fake),
        }
    )
    if min(real.shape[1:3]) >= SSIM_WINDOW:
        scores.quality.update(to_clip(fake)[None], to_clip(real)[None])
    if scores.networks and len(run) == header.num_frames:
        scores.update(*(to_clip(resize_crop(x, header.size))[None] for x in (real, fake)))
    if plain:
        yield from resize(fake, header.shown).numpy()
        return
    yield from compose(
        [Panel("original", real.numpy()), Panel("reconstruction", fake.numpy())],
        blocks,
        header.levels[-1] * len(header.grid),
        caption=f"clip {len(clips)}",
        frames_per_block=header.frames_per_block,
        panel_size=max(PANEL, header.height, header.width),
    )


def _psnr(real: Tensor, fake: Tensor) -> float:
    """dB between frames (F, H, W, 3) uint8."""
    error = ((fake.float() - real.float()) / 127.5).square().mean()
    return float(psnr_of_mse(error[None])[0])
