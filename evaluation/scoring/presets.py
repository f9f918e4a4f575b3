"""The protocols that papers score by, by name: which clips, how many, how cut, which covariance.

What a preset fixes goes into the record, so numbers of two presets never share a table. The
networks are named, not loaded: a preset asks for one, and another one may be given instead.

| preset | from | what is particular |
| --- | --- | --- |
| `larp-ucf` | LARP, AdapTok, EVATok | 10 000 of all windows of the train list, seed 42, biased;
resized as floats |
| `larp-k600` | LARP | 50 000 windows of the validation list, as floats, resized to 64 first |
| `magvit-k600` | MAGVIT | the same, resized to 64 as TensorFlow 1 did; unbiased |
| `tats-2048` | TATS, OmniTokenizer | 2 048 clips, one random window a video, unbiased |
| `styleganv-2048` | StyleGAN-V, Latte | 2 048 clips, one random window a video, biased |
"""

from __future__ import annotations

from pathlib import Path

from evaluation.scoring.clips import Cut
from evatok.core.config import Config
from evatok.core.errors import EvatokError
from evatok.core.suggest import did_you_mean


class Preset(Config):
    """Scoring rule of one line of papers.

    Attributes:
        cut: windows, size and count.
        biased: covariance by n, else by n − 1.
        network: the feature network that the papers took.
        lists: of the split whose clips are drawn, and of the other one, in a folder of both.
    """

    cut: Cut
    biased: bool
    network: str
    lists: tuple[str, str] | None = None

    def check(self, path: Path) -> None:
        """Refuse a folder of both splits: the papers draw from one of them.

        Raises:
            EvatokError: names the list to give instead.
        """
        if self.lists is not None and all((path / name).is_file() for name in self.lists):
            raise EvatokError(
                f"{path} has both splits, and this preset draws from one: give "
                f"{path / self.lists[0]}"
            )


PRESETS: dict[str, Preset] = {
    "larp-ucf": Preset(
        cut=Cut(window="all", count=10_000, resize="float", short="skip"),
        biased=True,
        network="i3d",
        lists=("trainlist01.txt", "testlist01.txt"),
    ),
    "larp-k600": Preset(
        cut=Cut(window="all", count=50_000, shrink=64, resize="float", order="name", short="skip"),
        biased=True,
        network="i3d",
        lists=("k600_val.csv", "k600_train.csv"),
    ),
    "magvit-k600": Preset(
        cut=Cut(window="all", count=50_000, shrink=64, shrink_by="legacy", order="name"),
        biased=False,
        network="i3d",
        lists=("k600_val.csv", "k600_train.csv"),
    ),
    "tats-2048": Preset(cut=Cut(window="random", count=2048), biased=False, network="i3d-tats"),
    "styleganv-2048": Preset(
        cut=Cut(window="random", count=2048, short="skip"), biased=True, network="i3d"
    ),
}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        EvatokError: there is none of that name.
    """
    if name not in PRESETS:
        raise EvatokError(
            f"no preset {name!r}; there are {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]
