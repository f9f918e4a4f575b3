"""Clips that are played while a model trains: no files, and no clip twice.

Clip n of a seed is a pure function of both: its game, its levels and everything that the player
does. So a resumed run goes on with the clips that it would have had, whatever the processes.

Shape letters: N clips, F frames, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from video.arcade.procgen import GAMES, ProcgenPlayer, check_games
from video.arcade.recorder import class_name
from video.cache import Store
from video.clips import Size
from video.decoding.container import VideoError
from video.lists import Split

_PER_SEED = 1 << 40  # clips of a seed before those of the next one


class LiveClips(Store):
    """Clips of Procgen by number; each is a video of its own."""

    def __init__(
        self, games: Sequence[str], split: Split, num_frames: int, size: Size, count: int
    ) -> None:
        """Check that the games can be played.

        Args:
            games: names; none = all.
            split: whose levels, see `video.arcade.procgen`.
            num_frames: of a clip.
            size: of a clip's pictures, square.
            count: of clips that are told to be there: an epoch, or all that are evaluated on.

        Raises:
            VideoError: an unknown game, no package that plays it, or pictures that are not square.
        """
        self.games = tuple(games) or GAMES
        check_games(self.games)
        if not isinstance(size, int):
            raise VideoError(f"procgen draws squares, not {size[0]} × {size[1]}: give one number")
        self.split, self.num_frames, self.size = split, num_frames, size
        self.lengths = np.full(count, num_frames, dtype=np.int64)
        self.labels = np.arange(count, dtype=np.int64) % len(self.games)
        self.ids = [f"{split}-{number}" for number in range(count)]
        self.class_names = [class_name(game) for game in sorted(self.games)]
        self.damaged = []
        self.games = tuple(sorted(self.games))

    def drawn(self, seed: int, source: int, count: int) -> int:
        """See `Store`: always a clip that nobody has seen."""
        return (seed * 100 + source) * _PER_SEED + count

    def label(self, video: int) -> int:
        """See `Store`: clips of the games in turn."""
        return video % _PER_SEED % len(self.games)

    def name(self, video: int) -> str:
        """See `Store`."""
        return f"{self.split}-{video}"

    def length(self, video: int) -> int:
        """See `Store`."""
        return self.num_frames

    def clip(self, video: int, start: int, num_frames: int) -> Tensor:
        """See `Store`; a clip is played when it is asked for."""
        if (start, num_frames) != (0, self.num_frames):
            raise EvatokError(f"a live clip is frames 0 to {self.num_frames}, whole")
        seed, number = divmod(video, _PER_SEED)
        test = self.split == "test"
        rng = np.random.default_rng([seed, number, int(test)])
        player = ProcgenPlayer(self.games[self.label(video)], rng, test)
        return torch.from_numpy(player.record(num_frames, self.size))
