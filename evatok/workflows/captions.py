"""Captions made from what is measured: the class's name, how bright a clip is, how much moves.

Brightness and motion are told against two thresholds each, thirds of the training clips: what is
below the first is dark or of little motion, what is above the second bright or of much motion, and
of what lies between nothing is said. A seed draws the wording and leaves some parts out, so that a
model learns to take the class alone, the look alone, and every way to say it.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evatok.core.compute.devices import float64_device
from evatok.core.config import Config

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LOOKS = {-1: ("dark", "dim"), 0: ("",), 1: ("bright", "light")}
MOTIONS = {
    -1: ("little motion", "hardly any motion", "little movement"),
    0: ("",),
    1: ("much motion", "a lot of motion", "much movement"),
}
KEEP_NAME, KEEP_LOOK, KEEP_MOTION = 0.9, 0.8, 0.8  # chances that a caption says so


class Thresholds(Config):
    """Thresholds of brightness and motion, in the units of `measure_clips`.

    Attributes:
        brightness: dark is below the first, bright above the second.
        motion: little is below the first, much above the second.
    """

    brightness: tuple[float, float]
    motion: tuple[float, float]

    @classmethod
    def from_values(cls, brightness: Tensor, motion: Tensor) -> Thresholds:
        """Thirds of measured clips, each (N,)."""
        thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        low, high = brightness.double().quantile(thirds).tolist()
        little, much = motion.double().quantile(thirds).tolist()
        return cls(brightness=(low, high), motion=(little, much))

    def ranks(self, brightness: Tensor, motion: Tensor) -> Tensor:
        """(B, 2) int64 of measured clips, each (B,): −1 low, 0 between, 1 high."""
        columns = [
            (values > high).long() - (values < low).long()
            for values, (low, high) in ((brightness, self.brightness), (motion, self.motion))
        ]
        return torch.stack(columns, 1)


def measure_clips(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness and motion of clips.

    Args:
        clips: (B, 3, F, H, W) float32 in [−1, 1], F at least 2.

    Returns:
        (B,) float64 mean luminance and (B,) float64 mean absolute difference of neighbouring
        frames, both as shares of the range of a pixel: 0 is black or still. On the clips' device,
        or on the CPU where that has no float64.
    """
    clips = clips.to(float64_device(clips.device))
    luma = torch.tensor(LUMA, dtype=clips.dtype, device=clips.device).view(3, 1, 1, 1)
    brightness = (clips * luma).sum(1).double().mean((1, 2, 3)) / 2 + 0.5
    motion = clips.diff(dim=2).abs().double().mean((1, 2, 3, 4)) / 2
    return brightness, motion


def class_words(name: str) -> str:
    """A class's name in words: "HorseRace" becomes "Horse Race", "UpNDown" "Up N Down"."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name)
    return " ".join(parts.split())


def plain_caption(name: str | None, brightness: int = 0, motion: int = 0) -> str:
    """The plainest wording: "a bright clip of Frogger with much motion".

    Args:
        name: of the class, as it is in the data; None leaves it out.
        brightness: −1 dark, 0 nothing said, 1 bright.
        motion: −1 little, 0 nothing said, 1 much.
    """
    return _clip(
        class_words(name or ""), LOOKS[brightness][0], MOTIONS[motion][0], "clip", " with "
    )


def caption(name: str | None, brightness: int, motion: int, random: np.random.Generator) -> str:
    """A caption of a clip in one of several wordings, not all of which tell everything.

    Args:
        name: of the class, as it is in the data; None where a clip has none.
        brightness: −1 dark, 0 between, 1 bright.
        motion: −1 little, 0 between, 1 much.
        random: draws the wording, always as many numbers.
    """
    keep, pick, form = random.random(3), random.integers(0, 6, 2), int(random.integers(4))
    words = class_words(name or "") if keep[0] < KEEP_NAME else ""
    look = LOOKS[brightness][pick[0] % len(LOOKS[brightness])] if keep[1] < KEEP_LOOK else ""
    moves = MOTIONS[motion][pick[1] % len(MOTIONS[motion])] if keep[2] < KEEP_MOTION else ""
    if form == 0:
        return _clip(words, look, moves, "clip", " with ")
    if form == 1:
        return _clip(words, look, moves, "video", ", ")
    if form == 2:
        return f"{moves} in {_clip(words, look, '', 'video', '')}".removeprefix(" in ")
    return _listed([words, look, moves])


def captions(
    ranks: Tensor, labels: Tensor, class_names: Sequence[str], seed: Sequence[int], first: int = 0
) -> list[str]:
    """Captions of a set of clips; that of the i-th depends on the seed, on i and on no other clip.

    Args:
        ranks: (B, 2) int64, of `Thresholds.ranks`.
        labels: (B,) int64, −1 for a clip without class.
        class_names: what the labels count.
        seed: of the set.
        first: number of the first of these clips in the set.
    """
    texts = []
    rows = zip(labels.tolist(), ranks.tolist(), strict=True)
    for number, (label, (brightness, motion)) in enumerate(rows, first):
        name = None if label < 0 else class_names[int(label)]
        random = np.random.default_rng([*seed, number])
        texts.append(caption(name, brightness, motion, random))
    return texts


def _clip(words: str, look: str, moves: str, noun: str, link: str) -> str:
    of = f" of {words}" if words else ""
    return f"a {look} {noun}".replace("  ", " ") + of + (link + moves if moves else "")


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part) or "a clip"
