"""The published protocols: which clips of which data, and what is made of them.

A table of what is fixed; `protocol_sides` makes the clips, `evaluate` scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from evatok.core.config import Config
from video.arcade.recorder import Source, class_name, games_of
from video.clips import Resizing, WindowRule
from video.dataset import Split

ProtocolKind = Literal["rfvd", "gfvd", "fp"]


class DataSet(Config):
    """Requirements on a protocol's data, independent of its folder's name.

    Attributes:
        name: for messages.
        classes: how many it may have; none: any number.
        videos: of the split's list; None: any number.
        games: its classes are games of `video.arcade`.
    """

    name: str
    classes: tuple[int, ...] = ()
    videos: int | None = None
    games: bool = False

    def fits(self, class_names: Sequence[str], num_videos: int) -> bool:
        """Whether a source of these classes, with so many videos in its list, is meant."""
        is_meant = not self.classes or len(class_names) in self.classes
        is_meant &= self.videos in (None, num_videos)
        return is_meant and (not self.games or set(class_names) <= _games())

    def describe(self) -> str:
        """The condition in words."""
        parts = [f"{' or '.join(map(str, self.classes))} classes"] if self.classes else []
        parts += [f"{self.videos} videos in its list"] if self.videos is not None else []
        parts += ["games of `evatok arcade` as classes"] if self.games else []
        return f"{self.name} ({', '.join(parts)})"


def _games() -> set[str]:
    return {class_name(game) for source in get_args(Source) for game in games_of(source)}


class Protocol(Config):
    """Clips of a protocol, and the kind of its fake side.

    Attributes:
        kind: reconstructions, samples, or predictions.
        data: what it is meant for.
        split: of the lists.
        window: "first" of each video, or "all" of them, of which `count` are drawn.
        count: clips; None: all.
        shrink: side to which both sides are resized first.
        resize: as in `evaluation.scoring.clips.Cut`.
        order: of the videos, as in `video.dataset.ClipSampler.eval_clips`.
        short: likewise, of videos shorter than a clip.
        given: what is compared of the frames that are given: what the decoder makes of them, as
            LARP and AdapTok, or the frames themselves, which whoever predicts has.
    """

    kind: ProtocolKind
    data: DataSet
    split: Split
    window: WindowRule
    count: int | None = None
    shrink: int | None = None
    resize: Resizing = "bytes"
    order: Literal["list", "path", "name"] = "list"
    short: Literal["repeat", "skip"] = "repeat"
    given: Literal["decoded", "kept"] = "decoded"


UCF = DataSet(name="UCF-101", classes=(101,), videos=9537)
K600 = DataSet(name="Kinetics-600", classes=(599, 600))  # the public list lacks a class
ARCADE = DataSet(name="arcade footage", games=True)
PROTOCOLS: dict[str, Protocol] = {
    "ucf101-rfvd": Protocol(
        kind="rfvd",
        data=UCF,
        split="train",
        window="first",
        count=9537,
        resize="float",
        order="path",
    ),
    "ucf101-gfvd": Protocol(
        kind="gfvd",
        data=UCF,
        split="train",
        window="all",
        count=10_000,
        resize="float",
        order="path",
        short="skip",
    ),
    "k600-fp": Protocol(
        kind="fp",
        data=K600,
        split="test",
        window="all",
        count=50_000,
        shrink=64,
        resize="float",
        order="name",
        short="skip",
    ),
    **{
        f"arcade-{kind}": Protocol(kind=kind, data=ARCADE, split="test", window="all", given="kept")
        for kind in ("rfvd", "gfvd", "fp")
    },
}
