"""Text alignment: how often samples match their caption, with baselines.

A held-out clip gives a text, its plainest caption; a sample of the text should then be of the
clip's class, and as bright and as lively as the text says. The tokenizer smooths small motion away,
so samples are held against the thresholds of the captions carried over to reconstructed clips: as
many of these lie below as real clips below the captions' own. Beside each share stand three more:

| column | the same share of |
| --- | --- |
| `by_chance` | a clip that knows nothing |
| `name_alone` | samples of "a clip of NAME" with the same seeds: what the class alone makes true |
| `reconstructed` | the real clips after the tokenizer: what samples could reach |

Pairs leave the class out of it: two texts of one class and one seed that differ in a word (bright
or dark, much or little motion), of classes whose held-out clips show both. The share is that of
pairs in which the clip that should have more has more.

Shape letters: N clips, B batch, F frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.encoders.nano import NanoNet
from evatok.generate.prompts import sample_texts
from evatok.generate.samples import request_seed
from evatok.hub import Models
from evatok.measure.clip_sets import ClipSet, accuracy, reconstruct_set
from evatok.workflows.captions import Thresholds, measure_clips, plain_caption
from generator.inference.requests import SamplingConfig
from tokenizer.search.assigners import make_assigner

PAIRS = 8  # of each class that shows both
MEASURES = ("brightness", "motion")  # columns of ranks
Rows = list[dict[str, Any]]


def text_rows(
    models: Models,
    sets: Sequence[ClipSet],
    settings: SamplingConfig,
    scales: Sequence[float],
    seed: int,
    pairs: int = PAIRS,
) -> Rows:
    """Rows {set, guidance, measure, share, low, high, …, num_clips}, low and high of 95 %.

    Args:
        models: generator with text, final tokenizer, router, features.
        sets: held-out clips.
        settings: how tokens are chosen.
        scales: guidance scales, rows for each.
        seed: of the samples.
        pairs: of each class that shows both.
    """
    thresholds = models.text.needs_thresholds()
    rows = []
    for real in sets:
        asked = thresholds.ranks(*_measured(real))
        names = [real.class_names[label] for label in real.labels.tolist()]
        seeds = [request_seed(seed, 0, place) for place in range(len(real))]
        whole = [plain_caption(n, *r) for n, r in zip(names, asked.tolist(), strict=True)]
        alone = [plain_caption(name) for name in names]
        router = make_assigner("router", models.final, models.router)
        rebuilt = reconstruct_set(models.final, router, real).clips
        limits = _carried(thresholds, real, rebuilt)
        best = _shares(models.features, limits, rebuilt, asked)
        for scale in scales:
            chosen = settings.model_copy(update={"guidance": scale})
            found, plain = (
                _shares(models.features, limits, real.like([clips]), asked)
                for clips, _ in (
                    sample_texts(models, texts, seeds, chosen) for texts in (whole, alone)
                )
            )
            about = {"set": real.name, "guidance": scale}
            for measure, (share, count) in found.items():
                rows.append(
                    about
                    | _row(measure, share, count, _chance(measure, models.features))
                    | {"name_alone": plain[measure][0], "reconstructed": best[measure][0]}
                )
            rows += [about | row for row in _pair_rows(models, real, asked, chosen, seed, pairs)]
    return rows


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of so many (E. B. Wilson, JASA 22, 1927)."""
    z = 1.959963984540054
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - half) / scale, (centre + half) / scale


def _measured(clips: ClipSet) -> Tensor:
    """(2, N) float64, brightness and motion."""
    return torch.cat([torch.stack(measure_clips(batch)) for batch in clips.batches()], 1)


def _carried(thresholds: Thresholds, real: ClipSet, rebuilt: ClipSet) -> Thresholds:
    """Thresholds at the quantiles of reconstructed clips that the given ones are of real clips."""
    columns = []
    limits = (thresholds.brightness, thresholds.motion)
    for values, other, pair in zip(_measured(real), _measured(rebuilt), limits, strict=True):
        shares = torch.stack([(values < limit).double().mean() for limit in pair])
        low, high = other.quantile(shares).tolist()
        columns.append((low, high))
    return Thresholds(brightness=columns[0], motion=columns[1])


def _shares(
    net: NanoNet, limits: Thresholds, clips: ClipSet, asked: Tensor
) -> dict[str, tuple[float, int]]:
    """Share of the clips that are as asked, of how many; clips of which nothing is said aside."""
    out: dict[str, tuple[float, int]] = {}
    of_class = accuracy(net, clips)
    if of_class is not None:
        out["class"] = (of_class, len(clips))
    found = limits.ranks(*_measured(clips))
    for column, measure in enumerate(MEASURES):
        is_said = asked[:, column] != 0
        if bool(is_said.any()):
            agree = found[is_said, column] == asked[is_said, column]
            out[measure] = (float(agree.double().mean()), len(agree))
    return out


def _chance(measure: str, net: NanoNet) -> float:
    return 1 / len(net.class_names) if measure == "class" else 1 / 3


def _row(measure: str, share: float, count: int, chance: float) -> dict[str, Any]:
    low, high = interval(share, count)
    return {
        "measure": measure,
        "share": share,
        "low": low,
        "high": high,
        "by_chance": chance,
        "num_clips": count,
    }


def _pair_rows(
    models: Models,
    real: ClipSet,
    asked: Tensor,
    settings: SamplingConfig,
    seed: int,
    pairs: int,
) -> Rows:
    """For each measure the share of pairs in which more is more; none where no class has both."""
    rows = []
    for column, measure in enumerate(MEASURES):
        texts: list[str] = []
        seeds: list[int] = []
        for label in sorted(set(real.labels.tolist())):
            own = asked[real.labels == label, column].tolist()
            if not {-1, 1} <= set(own):
                continue
            for place in range(pairs):
                for rank in (-1, 1):
                    texts.append(plain_caption(real.class_names[label], **{measure: rank}))
                    seeds.append(request_seed(seed, 1 + column, label, place))
        if texts:
            clips, _ = sample_texts(models, texts, seeds, settings)
            values = measure_clips(clips)[column].view(-1, 2)  # (pairs, less and more)
            is_more = (values[:, 1] > values[:, 0]).double()
            rows.append(_row(f"{measure} of pairs", float(is_more.mean()), len(values), 0.5))
    return rows
