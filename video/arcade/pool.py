"""Games of the package envpool: one environment, one session.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from video.arcade.player import CHANGE, KEEP_ACTION, Player, shrink
from video.decoding.container import VideoError

_MAX_STEPS = 40  # frames looked at for each frame of a clip; games that end soon need many


def load_envpool() -> Any:
    """The package, imported here only.

    Raises:
        VideoError: it is not installed, or a library that it needs is not; says what to install.
    """
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise VideoError(
            f"playing Procgen and Doom needs envpool ({error}); install it with "
            'pip install "evatok[procgen]" and Qt with apt-get install libqt5gui5 (Debian, Ubuntu)'
        ) from error
    return envpool


class PoolPlayer(Player):
    """A session of one environment; an action that changes nothing is given up at once.

    Attributes:
        actions: what the player may do.
        odds: how likely he is to choose each.
    """

    actions: np.ndarray
    odds: np.ndarray

    def __init__(self, game: str, rng: np.random.Generator, test: bool) -> None:
        """Begin a session of the levels of a split.

        Args:
            game: one of the source's names.
            rng: draws everything, the environment's seed included.
            test: the levels that are kept for testing.
        """
        super().__init__(game, rng)
        self.test = test
        self.start()

    @abstractmethod
    def make(self, seed: int) -> Any:
        """The environment, with one player, one thread and channels first."""

    def start(self) -> None:
        """See `Player`."""
        self.env = self.make(int(self.rng.integers(1, 2**31 - 1)))
        self.screen = self.env.reset()[0][0].copy()  # (3, H, W) uint8
        self._choose()
        self.play(*self.warm_up)

    def play(self, low: int, high: int) -> None:
        """See `Player`."""
        for _ in range(int(self.rng.integers(low, high))):
            self._step()

    def clip(self, num_frames: int, size: int) -> np.ndarray | None:
        """See `Player`; frames before a restart are dropped and the clip is begun anew."""
        frames: list[np.ndarray] = []
        for _ in range(_MAX_STEPS * num_frames):
            if self._step():
                frames = []
                continue
            frames.append(self.screen)
            if len(frames) == num_frames:
                whole = np.stack(frames).transpose(0, 2, 3, 1)  # (F, H, W, 3)
                if whole.shape[1] != size:
                    whole = np.stack([shrink(np.ascontiguousarray(f), size) for f in whole])
                return np.ascontiguousarray(whole)
        return None

    def _step(self) -> bool:
        """Play one frame and choose what to do in the next; tell whether the level has ended."""
        screen, _, ended, cut, _ = self.env.step(np.array([self.action]))
        before, self.screen = self.screen, screen[0].copy()
        changed = np.abs(self.screen.astype(np.int16) - before) > CHANGE
        if self.rng.random() >= KEEP_ACTION or not changed.any():
            self._choose()
        return bool(ended[0] or cut[0])

    def _choose(self) -> None:
        self.action = self.actions[self.rng.choice(len(self.actions), p=self.odds)]


def check_games(games: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raise a VideoError for a game that a source has not, or where envpool is absent."""
    for game in games:
        if game not in known:
            raise VideoError(f"{source} has no game {game!r}; it has {', '.join(known)}")
    load_envpool()
