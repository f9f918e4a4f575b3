"""The two sides of a protocol: held-out clips, and what a model makes of them.

Shape letters: B batch, N clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from evaluation.metrics.quality import moving_psnr, psnr, ssim
from evaluation.perceptual.distance import PerceptualDistance
from evaluation.perceptual.load import load_perceptual
from evaluation.scoring.clips import ALONE, Cut, Item
from evaluation.scoring.feature_cache import FeatureCache
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.processes.distributed import RankInfo, gather
from evatok.generate.samples import (
    frame_condition,
    guidance_of,
    labels_of,
    predict_clips,
    request_seed,
    sample_labels,
)
from evatok.hub import Models
from evatok.measure.clip_sets import standing, to_bytes
from evatok.measure.protocols import Protocol, ProtocolKind
from generator.gpt import GPT
from generator.inference.requests import SamplingConfig
from tokenizer.coding.refined import METHOD, refine
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.candidates import model_hash
from tokenizer.tokens import Tokens
from video.clips import WindowRule
from video.dataset import ClipSampler, DataConfig, Window
from video.prepare import REPORT

T = TypeVar("T")
MAKING = 1  # another number where the same weights and settings come to make other clips
CHUNK = 32  # clips made at a time; the same in every run, so that the same bits come out


@dataclass(frozen=True)
class EvaluationSettings:
    """Arguments of `evaluate`.

    Attributes:
        protocol: name of one of `PROTOCOLS`.
        data: settings file with `data`.
        model: name or folder.
        count: clips, instead of the protocol's.
        window: of reconstructions, instead of the protocol's.
        assignment: of reconstructions.
        refine_steps: of the search for their tokens (`tokenizer.coding.refined`).
        guidance: of samples; None: the model's.
        seed: of samples and predictions.
        device: where the models work.
        still: whether one frame of each real clip, standing still, is scored beside the model.
    """

    protocol: str
    data: Path
    model: str = "nano"
    count: int | None = None
    window: WindowRule | None = None
    assignment: str = "router"
    refine_steps: int = 0
    guidance: float | None = None
    seed: int = 0
    device: str = "auto"
    still: bool = False


@dataclass
class RealSide:
    """The real side: clips of a sampler, at windows that a protocol draws.

    Attributes:
        sampler: reads them.
        windows: where they are.
        cut: what their pixels are.
        root: folder of their videos.
        digests: of the clips gone through, by their places.
    """

    sampler: ClipSampler
    windows: list[Window]
    cut: Cut
    root: Path
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def is_copied(self) -> bool:
        """Whether the videos are copies that `evatok data` has encoded anew."""
        return (self.root / REPORT).is_file()

    def load(self, start: int) -> Tensor:
        """The chunk of clips from a place on, (B, 3, F, H, W) float32 in [−1, 1]."""
        return self.sampler.load(self.windows[start : start + CHUNK])[0]

    def chunks(self, process: RankInfo) -> Iterator[range]:
        """Places of clips that are made together, one process's share of them."""
        for chunk in process.shard(-(-len(self.windows) // CHUNK)):
            yield range(len(self.windows))[chunk * CHUNK : (chunk + 1) * CHUNK]

    def walk(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        process: RankInfo = ALONE,
    ) -> Iterator[Item]:
        """See `evaluation.scoring.clips.Source.walk`; a clip is known by its pixels."""
        self.digests = {}
        for chunk in self.chunks(process):
            for number, clip in zip(chunk, self.load(chunk.start), strict=True):
                digest = hashlib.sha256(to_bytes(clip[None]).numpy().tobytes()).hexdigest()
                self.digests[number] = digest
                key = f"pixels {digest}{_changed(self.cut)}"
                wanted = self.cut.finish(clip) if is_wanted(key) else None
                yield Item(number, str(number), key, wanted)

    def exchange(self) -> None:
        """Tell all processes every clip's digest."""
        self.digests = _of_all(self.digests)

    def class_names(self) -> list[str]:
        """Of each window."""
        names, label = self.sampler.class_names, self.sampler.label
        return [names[label(window)] for window in self.windows]

    def fingerprint(self) -> str:
        """sha256 in hex over all clips."""
        return hashlib.sha256("\n".join(self.digests.values()).encode()).hexdigest()


def _of_all(mine: Mapping[int, T]) -> dict[int, T]:
    """What every process knows of its clips, by their places, in order of these."""
    every = [pair for part in gather(list(mine.items())) for pair in part]
    return dict(sorted(every, key=lambda pair: pair[0]))


def _changed(cut: Cut) -> str:
    """Measures of a clip beside the bytes that its digest is of."""
    exact = " float" if cut.resize == "float" else ""
    return f"{exact} {cut.shrink_by} {cut.shrink}" if cut.shrink else exact


@dataclass
class FakeSide:
    """The fake side: what a model makes of the real clips, and what is told of each.

    Attributes:
        real: the clips, gone through before.
        make: places of real clips → clips in [−1, 1], tokens, notes of each.
        origin: whatever decides a made clip beside the real one.
        notes: of each clip by its process, filled while the clips are gone through.
    """

    real: RealSide
    make: Callable[[range], tuple[Tensor, Tokens, list[dict[str, Any]]]]
    origin: str
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def walk(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        process: RankInfo = ALONE,
    ) -> Iterator[Item]:
        """See `evaluation.scoring.clips.Source.walk`; a chunk of which all is known is not made."""
        self.notes = {}
        for chunk in self.real.chunks(process):
            keys = [
                f"{self.origin} {number} {self.real.digests[number]}{_changed(self.real.cut)}"
                for number in chunk
            ]
            noted = [] if cache is None else [cache.note(key) for key in keys]
            known = [note for note in noted if note is not None]
            if len(known) == len(keys) and not any(map(is_wanted, keys)):
                for number, key, note in zip(chunk, keys, known, strict=True):
                    self.notes[number] = note
                    yield Item(number, str(number), key, None)
                continue
            clips, tokens, notes = self.make(chunk)
            made = zip(chunk, keys, clips, tokens.blocks(), notes, strict=True)
            for number, key, clip, blocks, note in made:
                ids = torch.cat(list(blocks)).tolist()
                self.notes[number] = {**note, "ids": ids, "assignment": [len(b) for b in blocks]}
                if cache is not None:
                    cache.put_note(key, self.notes[number])
                yield Item(number, str(number), key, self.real.cut.finish(clip))

    def exchange(self) -> None:
        """Tell all processes every clip's note."""
        self.notes = _of_all(self.notes)


@dataclass
class StillSide:
    """A fake side that no model makes: of each real clip one frame that stands still.

    Whatever loses all that moves scores like this; a reconstruction or a prediction is worth
    something as far as it is nearer.

    Attributes:
        real: the clips, gone through before.
        given: frames of a clip that are kept; the last of them stands from there on.
        notes: of each clip by its place: `psnr`, `moving_psnr` (None where nothing moves), of all
            frames if one is given, else of those that were not given.
    """

    real: RealSide
    given: int = 1
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def walk(
        self,
        is_wanted: Callable[[str], bool],
        cache: FeatureCache | None,
        process: RankInfo = ALONE,
    ) -> Iterator[Item]:
        """See `evaluation.scoring.clips.Source.walk`."""
        self.notes = {}
        start = 0 if self.given == 1 else self.given
        for chunk in self.real.chunks(process):
            clips = self.real.load(chunk.start)
            still = standing(clips, self.given)
            pair = still[:, :, start:], clips[:, :, start:]
            measured = zip(psnr(*pair).tolist(), moving_psnr(*pair).tolist(), strict=True)
            for number, clip, (whole, moving) in zip(chunk, still, measured, strict=True):
                self.notes[number] = {
                    "psnr": whole,
                    "moving_psnr": moving if moving == moving else None,  # NaN is no JSON
                }
                key = f"still {self.given} {self.real.digests[number]}{_changed(self.real.cut)}"
                yield Item(number, str(number), key, self.real.cut.finish(clip))

    def exchange(self) -> None:
        """Tell all processes every clip's note."""
        self.notes = _of_all(self.notes)


def draw(
    protocol: Protocol, data: DataConfig, count: int | None, window: WindowRule | None = None
) -> RealSide:
    """The clips of a protocol, at other windows than its own if some are named."""
    window = window or protocol.window
    sampler = ClipSampler(data, protocol.split, resizing=protocol.resize)
    names = [source.root.name for source in sampler.sources]
    counts = [len(cache) + len(cache.damaged) for cache in sampler.caches]
    classes = [cache.class_names for cache in sampler.caches]
    fitting = [n for n in range(len(names)) if protocol.data.fits(classes[n], counts[n])]
    if not fitting:
        there = (f"{name} ({len(c)} classes, {n} videos)"
                 for name, c, n in zip(names, classes, counts, strict=True))  # fmt: skip
        raise EvatokError(
            f"the protocol is for {protocol.data.describe()}; the data has {', '.join(there)}"
        )
    wanted = count or protocol.count
    windows = sampler.eval_clips(
        wanted, window, fitting[0], order=protocol.order, short=protocol.short
    )
    if wanted is not None and len(windows) < wanted:
        raise EvatokError(
            f"{names[fitting[0]]} has {len(windows)} clips, not {wanted}: give --count "
            f"{len(windows)} (a distance of another count is another distance)"
        )
    cut = Cut(
        num_frames=data.num_frames,
        size=data.size,
        window=window,
        count=wanted,
        shrink=protocol.shrink,
        resize=protocol.resize,
        order="name" if protocol.order == "name" else "path",
        short=protocol.short,
    )
    return RealSide(sampler, windows, cut, sampler.sources[fitting[0]].root)


def lpips_at_hand() -> PerceptualDistance | None:
    """LPIPS, None where the weights of its VGG16 are not here."""
    try:
        return load_perceptual("lpips")
    except MissingFileError:
        return None


def fake_side(
    protocol: Protocol, models: Models, real: RealSide, settings: EvaluationSettings
) -> FakeSide:
    """The fake side of a protocol."""
    kind = protocol.kind
    if kind == "rfvd":
        assigner = models.assigner(settings.assignment)
        lpips = lpips_at_hand()

        @torch.no_grad()
        def reconstruct(places: range) -> tuple[Tensor, Tokens, list[dict[str, Any]]]:
            clips = real.load(places.start)
            there = clips.to(models.device)
            tokens = models.final.encode(there, assigner(there))
            tokens = refine(models.final, there, tokens, settings.refine_steps)
            made = models.final.decode(tokens).float().clamp(-1, 1)
            out = made.cpu()
            mse = (out - clips).square().double().mean((1, 2, 3, 4))
            columns = {
                "psnr": psnr(out, clips).tolist(),
                # NaN, where nothing moves, is no JSON
                "moving_psnr": [v if v == v else None for v in moving_psnr(out, clips).tolist()],
                "ssim": ssim(out, clips).tolist(),
                "mse": mse.tolist(),
            }
            if lpips is not None:
                columns["lpips"] = lpips(made, there).tolist()
            rows = zip(*columns.values(), strict=True)
            return out, tokens, [dict(zip(columns, row, strict=True)) for row in rows]

        parts, origin = _assignment_origin(models, settings.assignment)
        if settings.refine_steps:
            origin["refine"] = [METHOD, settings.refine_steps]
        if lpips is not None:
            origin["lpips"] = lpips.checksum
        return FakeSide(real, reconstruct, _origin(kind, parts, origin))
    scale = guidance_of(models, settings.guidance) if kind == "gfvd" else 1.0
    chosen = SamplingConfig(guidance=scale)
    origin = {"sampling": chosen.model_dump(mode="json"), "seed": settings.seed}
    parts = (models.final, models.generator)
    if kind == "gfvd":
        labels, indices = labels_of(models, real.class_names())

        def generate(places: range) -> tuple[Tensor, Tokens, list[dict[str, Any]]]:
            rows = slice(places.start, places.stop)
            out, tokens = sample_labels(models, labels[rows], indices[rows], settings.seed, chosen)
            return out, tokens, [{} for _ in out]

        return FakeSide(real, generate, _origin(kind, parts, origin))
    given = frame_condition(models).num_frames
    if protocol.given == "kept":
        origin["given"] = protocol.given

    def predict(places: range) -> tuple[Tensor, Tokens, list[dict[str, Any]]]:
        clips = real.load(places.start)
        seeds = [request_seed(settings.seed, place) for place in places]
        out, tokens = predict_clips(models, clips, seeds, chosen)
        if protocol.given == "kept":
            out[:, :, :given] = clips[:, :, :given]
        pair = out[:, :, given:], clips[:, :, given:]
        measured = zip(psnr(*pair).tolist(), moving_psnr(*pair).tolist(), strict=True)
        notes = [
            {"psnr_predicted": whole, "moving_psnr_predicted": moving if moving == moving else None}
            for whole, moving in measured
        ]
        return out, tokens, notes

    return FakeSide(real, predict, _origin(kind, parts, origin))


def _assignment_origin(
    models: Models, spec: str
) -> tuple[tuple[torch.nn.Module, ...], dict[str, Any]]:
    """Parts and settings that decide reconstructions with an assignment; see `Models.assigner`."""
    name, _, value = spec.partition(":")
    parts: tuple[torch.nn.Module, ...] = (models.final,)
    more: dict[str, Any] = {"assignment": spec}
    if name in ("router", "best"):
        parts += (models.router, models.conditioned_router)
    if name in ("best", "threshold") and "proxy" in models.parts:
        parts += (models.proxy,)
    # The weights do not tell what the router's config does.
    if name == "best":
        fields = {"standard", "quality"} if value else {"w_q", "standard", "quality"}
        more["reward"] = models.router.config.model_dump(mode="json", include=fields)
    elif name == "router" and not value and models.router.config.preference:
        more["w_q"] = models.router.config.w_q
    return parts, more


def _settings_of(part: torch.nn.Module) -> dict[str, Any]:
    if isinstance(part, VideoTokenizer):
        return part.config.model_dump(mode="json")
    assert isinstance(part, GPT)
    about = {"size": part.size, "vocabulary": part.vocabulary, "frames": part.frames}
    return {k: None if v is None else v.model_dump(mode="json") for k, v in about.items()}


def _origin(kind: ProtocolKind, parts: Sequence[torch.nn.Module], more: dict[str, Any]) -> str:
    """Hash of the weights and settings that decide what is made.

    A model's own settings count as its weights do: those say how given frames are padded, at what
    base the positions turn. A router's w_q, reward and the like are in `more` where they count.
    """
    settings = [_settings_of(part) for part in parts if not isinstance(part, Router)]
    weights = [model_hash(part) for part in parts]
    text = json.dumps(
        {"kind": kind, "making": MAKING, "weights": weights, "settings": settings, **more}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
