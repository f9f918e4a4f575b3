"""Numbers about trained models on held-out clips: the rows of every table.

Each function returns JSON-able rows, one for a thing that is compared, with the name of the set in
`set`: a set is one source of the data (arcade games, UCF-101, ...).

Shape letters: N clips, F frames, T blocks, H W pixels, M = m^T candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.encoders.nano import NanoNet
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.quality import mean_where_moving, moving_psnr, psnr, ssim
from evatok.core.compute.devices import device_of
from evatok.core.errors import EvatokError
from evatok.generate.samples import labels_of, predict_clips, request_seed, sample_labels
from evatok.hub import Models
from generator.inference.requests import SamplingConfig
from tokenizer.coding.refined import refine
from tokenizer.model import VideoTokenizer
from tokenizer.search.assigners import Assigner, make_assigner
from tokenizer.tokens import Tokens
from video.clips import to_frames
from video.dataset import ClipSampler, DataConfig, Window

BATCH = 32


@dataclass
class ClipSet:
    """Clips in memory, with the features that were asked of them.

    Attributes:
        name: of the set.
        clips: (N, 3, F, H, W) uint8.
        labels: (N,) int64.
        class_names: what the labels count.
    """

    name: str
    clips: Tensor
    labels: Tensor
    class_names: list[str]
    _features: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    def batches(self) -> Iterator[Tensor]:
        """(B, 3, F, H, W) float32 in [−1, 1]."""
        for part in self.clips.split(BATCH):
            yield part.float().div_(127.5).sub_(1)

    def features(self, network: FeatureNetwork, limit: int | None = None) -> Tensor:
        """(n, D) float32 of the first `limit` clips; kept for the next call."""
        key = (network.name, network.checksum)
        wanted = min(len(self), limit or len(self))
        have = self._features.get(key)
        if have is None or len(have) < wanted:
            parts = self.clips[0 if have is None else len(have) : wanted].split(BATCH)
            new = torch.cat([network(part.float().div_(127.5).sub_(1)) for part in parts])
            self._features[key] = new if have is None else torch.cat([have, new])
        return self._features[key][:wanted]

    def like(self, clips: Sequence[Tensor]) -> ClipSet:
        """Other clips (B, 3, F, H, W) in [−1, 1], rounded to bytes, under the same labels."""
        bytes_ = torch.cat([to_bytes(part) for part in clips])
        return ClipSet(self.name, bytes_, self.labels, self.class_names)


def to_bytes(clips: Tensor) -> Tensor:
    """(B, 3, F, H, W) float in [−1, 1] → uint8 of the same shape, as a file would hold it."""
    return torch.stack([to_frames(clip).permute(3, 0, 1, 2) for clip in clips])


def standing(clips: Tensor, given: int = 1) -> Tensor:
    """Clips (B, 3, F, H, W) whose first frames are as they are, and the last of these stays."""
    still = clips.clone()
    still[:, :, given:] = clips[:, :, given - 1 : given]
    return still


@dataclass(frozen=True)
class Network:
    """A feature network and how many clips it is given; None = all."""

    features: FeatureNetwork
    limit: int | None = None


def held_out_sets(data: DataConfig, limit: int, only: str | None = None) -> list[ClipSet]:
    """Held-out clips of each source: at most `limit` of all non-overlapping windows, seed 42.

    Args:
        data: the sources.
        limit: clips of each.
        only: the source whose folder has this name, instead of all.
    """
    sampler = ClipSampler(data, "test")
    sets = []
    for number, source in enumerate(sampler.sources):
        if only is not None and source.root.name != only:
            continue
        windows = sampler.eval_clips(limit, "all", source=number)
        sets.append(clip_set(sampler, windows, source.root.name))
    return sets


def clip_set(sampler: ClipSampler, windows: Sequence[Window], name: str) -> ClipSet:
    """Windows of a sampler, read into memory."""
    parts, labels = [], []
    for start in range(0, len(windows), BATCH):
        clips, part = sampler.load(windows[start : start + BATCH])
        parts.append(to_bytes(clips))
        labels.append(part)
    return ClipSet(name, torch.cat(parts), torch.cat(labels), sampler.class_names)


def distances(real: ClipSet, fake: ClipSet, networks: Sequence[Network]) -> dict[str, Any]:
    """`fvd[name]` for each network, and `num_clips[name]` where it saw fewer than all."""
    out: dict[str, Any] = {}
    for network in networks:
        x, y = (side.features(network.features, network.limit) for side in (real, fake))
        out[f"fvd[{network.features.name}]"] = frechet_distance(x, y)
        if len(x) < len(real):
            out[f"clips[{network.features.name}]"] = len(x)
    return out


@dataclass(frozen=True)
class Reconstructed:
    """A set after the tokenizer.

    Attributes:
        clips: the reconstructions.
        tokens: of all clips.
        psnr: (N,) float64 dB.
        moving_psnr: (N,) float64 dB where the clip moves, NaN where none of it does.
        ssim: (N,) float64.
    """

    clips: ClipSet
    tokens: Tokens
    psnr: Tensor
    moving_psnr: Tensor
    ssim: Tensor

    def row(self, codebook_size: int) -> dict[str, Any]:
        """Mean PSNR, moving PSNR, SSIM and tokens, and the share of the codebook that was used."""
        used = torch.bincount(self.tokens.ids, minlength=codebook_size) > 0
        return {
            "psnr": float(self.psnr.mean()),
            "moving_psnr": mean_where_moving(self.moving_psnr),
            "ssim": float(self.ssim.mean()),
            "mean_tokens": float(self.tokens.lengths.double().mean()),
            "codebook_use": float(used.double().mean()),
        }


@torch.no_grad()
def reconstruct_set(
    model: VideoTokenizer, assigner: Assigner, real: ClipSet, refine_steps: int = 0
) -> Reconstructed:
    """Encode and decode a set; quality is that of the clamped result, before rounding.

    Args:
        model: the tokenizer.
        assigner: chooses the number of tokens of each block.
        real: the clips.
        refine_steps: of the search for better tokens (`tokenizer.coding.refined`).
    """
    clips, tokens, psnrs, moved, ssims = [], [], [], [], []
    for batch in real.batches():
        there = batch.to(device_of(model))
        coded = refine(model, there, model.encode(there, assigner(there)), refine_steps)
        tokens.append(coded.to("cpu"))
        out = model.decode(coded).float().clamp(-1, 1).cpu()
        psnrs.append(psnr(out, batch))
        moved.append(moving_psnr(out, batch))
        ssims.append(ssim(out, batch))
        clips.append(to_bytes(out))
    fake = ClipSet(real.name, torch.cat(clips), real.labels, real.class_names)
    return Reconstructed(fake, Tokens.cat(tokens), *map(torch.cat, (psnrs, moved, ssims)))


def uniform_rows(model: VideoTokenizer, sets: Sequence[ClipSet]) -> list[dict[str, Any]]:
    """Quality at every uniform level: {set, level} and `Reconstructed.row`."""
    rows = []
    for real in sets:
        for level in model.levels.values:
            done = reconstruct_set(model, make_assigner(f"uniform:{level}", model), real)
            rows.append({"set": real.name, "level": level, **done.row(model.config.codebook_size)})
    return rows


def gate(rows: Sequence[dict[str, Any]], name: str, min_gain: float) -> dict[str, Any]:
    """Whether quality rises with the budget on one set (rows of `uniform_rows`).

    Returns:
        {set, psnr of each level, gain in dB from the lowest to the highest level, is_rising,
        passed}.
    """
    values = [row["psnr"] for row in rows if row["set"] == name]
    if not values:
        raise EvatokError(f"no set {name!r} to judge; there are {sorted({r['set'] for r in rows})}")
    is_rising = all(a < b for a, b in pairwise(values))
    gain = values[-1] - values[0]
    return {
        "set": name,
        "psnr": values,
        "gain": gain,
        "min_gain": min_gain,
        "is_rising": is_rising,
        "passed": is_rising and gain >= min_gain,
    }


def tokenizer_rows(
    models: Models,
    sets: Sequence[ClipSet],
    networks: Sequence[Network],
    preferences: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Uniform at the second-highest level and router (proxy), router (final), on every set.

    Then the final tokenizer under the router that takes w_q, at each of these preferences. First
    of all each clip's first frame, standing still: what loses all that moves scores like it.
    """
    proxy, final = models.proxy, models.final
    level = proxy.levels.values[max(0, len(proxy.levels) - 2)]
    contenders = [
        (f"uniform-{level} (proxy)", proxy, make_assigner(f"uniform:{level}", proxy)),
        ("router (proxy)", proxy, make_assigner("router", proxy, models.router)),
        ("router (final)", final, make_assigner("router", final, models.router)),
    ]
    for w_q in preferences:
        assigner = make_assigner(f"router:{w_q}", final, models.conditioned_router)
        contenders.append((f"router, w_q {w_q:g} (final)", final, assigner))
    rows = []
    for real in sets:
        rows.append(standing_row(real, networks))
        for name, model, assigner in contenders:
            done = reconstruct_set(model, assigner, real)
            rows.append(
                {
                    "set": real.name,
                    "tokenizer": name,
                    **done.row(model.config.codebook_size),
                    **distances(real, done.clips, networks),
                    "num_clips": len(real),
                }
            )
    return rows


def standing_row(real: ClipSet, networks: Sequence[Network]) -> dict[str, Any]:
    """A row of `tokenizer_rows` for clips whose first frame stands still."""
    still = real.like([standing(batch) for batch in real.batches()])
    pairs = list(zip(still.batches(), real.batches(), strict=True))
    return {
        "set": real.name,
        "tokenizer": "first frame stands still",
        "psnr": float(torch.cat([psnr(*pair) for pair in pairs]).mean()),
        "moving_psnr": mean_where_moving(torch.cat([moving_psnr(*pair) for pair in pairs])),
        "ssim": float(torch.cat([ssim(*pair) for pair in pairs]).mean()),
        "mean_tokens": None,
        "codebook_use": None,
        **distances(real, still, networks),
        "num_clips": len(real),
    }


def accuracy(net: NanoNet, clips: ClipSet) -> float | None:
    """Share of clips that the classifier takes for their class; None if it knows none of them."""
    known = {name: index for index, name in enumerate(net.class_names)}
    wanted = [known.get(clips.class_names[label], -1) for label in clips.labels.tolist()]
    if all(label < 0 for label in wanted):
        return None
    with torch.inference_mode():
        batches = (batch.to(device_of(net)) for batch in clips.batches())
        guesses = torch.cat([net(batch).argmax(-1) for batch in batches]).tolist()
    return sum(a == b for a, b in zip(guesses, wanted, strict=True)) / len(wanted)


def sampling_rows(
    models: Models,
    sets: Sequence[ClipSet],
    networks: Sequence[Network],
    settings: SamplingConfig,
    scales: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    """Class-conditional samples with the labels of exactly the real clips, at guidance scales."""
    vocabulary = models.generator.vocabulary
    rows = []
    for real in sets:
        names = [real.class_names[label] for label in real.labels.tolist()]
        if not set(names) <= set(vocabulary.class_names):
            continue
        labels, indices = labels_of(models, names)
        truth = accuracy(models.features, real)
        for scale in scales:
            chosen = settings.model_copy(update={"guidance": scale})
            clips, tokens = sample_labels(models, labels, indices, seed, chosen)
            fake = real.like([clips])
            rows.append(
                {
                    "set": real.name,
                    "guidance": scale,
                    **distances(real, fake, networks),
                    "accuracy": accuracy(models.features, fake),
                    "accuracy_of_real": truth,
                    "mean_tokens": float(tokens.lengths.double().mean()),
                    "num_clips": len(real),
                }
            )
    return rows


def prediction_rows(
    models: Models,
    sets: Sequence[ClipSet],
    networks: Sequence[Network],
    settings: SamplingConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Frame prediction against real clips, beside the last given frame standing still.

    PSNR and moving PSNR are over the frames that were not given, the distances over whole clips,
    of which both have the given frames as they are.
    """
    condition = models.generator.frames
    if condition is None:
        return []
    given = condition.num_frames
    rows = []
    for real in sets:
        clips = torch.cat(list(real.batches()))
        seeds = [request_seed(seed, place) for place in range(len(clips))]
        predicted, tokens = predict_clips(models, clips, seeds, settings)
        predicted[:, :, :given] = clips[:, :, :given]
        still = standing(clips, given)
        for name, out in (("generator", predicted), ("last frame stands still", still)):
            rows.append(
                {
                    "set": real.name,
                    "prediction": name,
                    "psnr": float(psnr(out[:, :, given:], clips[:, :, given:]).mean()),
                    "moving_psnr": mean_where_moving(
                        moving_psnr(out[:, :, given:], clips[:, :, given:])
                    ),
                    **distances(real, real.like([out]), networks),
                    "mean_tokens": float(tokens.lengths.double().mean())
                    if out is predicted
                    else None,
                    "num_clips": len(real),
                }
            )
    return rows
