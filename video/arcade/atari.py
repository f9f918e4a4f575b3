"""Atari games: the Arcade Learning Environment carries their ROMs, so nothing is downloaded.

A session has its own game mode and difficulty. Test sessions have seeds of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from video.arcade.player import KEEP_ACTION, Player, shrink
from video.decoding.container import VideoError

if TYPE_CHECKING:
    from ale_py import ALEInterface

# Chosen by the distance from a frame to its nearest frame of other sessions (small for games which
# always look alike), by the share of moving pixels and by looking at them.
GAMES = (
    "air_raid",
    "assault",
    "asteroids",
    "battle_zone",
    "beam_rider",
    "boxing",
    "darkchambers",
    "entombed",
    "fishing_derby",
    "frogger",
    "frostbite",
    "journey_escape",
    "laser_gates",
    "riverraid",
    "skiing",
    "solaris",
    "superman",
    "time_pilot",
    "turmoil",
    "tutankham",
    "up_n_down",
    "wizard_of_wor",
    "yars_revenge",
    "zaxxon",
)

# The emulator ends the whole process when it loads one of these for a single player.
_FOR_TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}

_FRAME_SKIP = 4  # emulator frames (60 a second) per recorded frame


def _load_emulator() -> Any:
    try:
        import ale_py.roms
    except ImportError as error:
        raise VideoError(
            'recording Atari games needs ale-py; install it with pip install "evatok[arcade]"'
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def check_games(games: Sequence[str]) -> None:
    """Raise a VideoError that names the first game which cannot be played."""
    known = sorted(set(_load_emulator().roms.get_all_rom_ids()) - _FOR_TWO_PLAYERS)
    for game in games:
        if game not in known:
            raise VideoError(
                f"ale-py has no one-player game named {game!r}; its names read like {known[0]!r}"
            )


class AtariPlayer(Player):
    """A session of the emulator; see `Player`."""

    warm_up = (60, 360)  # 4 to 24 seconds
    between = (30, 120)  # 2 to 8 seconds

    def __init__(self, game: str, rng: np.random.Generator) -> None:
        super().__init__(game, rng)
        ale_py = _load_emulator()
        self.ale: ALEInterface = ale_py.ALEInterface()
        # A seed of 0 would mean the time of day.
        self.ale.setInt("random_seed", int(rng.integers(1, 2**31)))
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(game))
        self.actions = self.ale.getMinimalActionSet()
        self.action = self.actions[0]
        self.start()

    def start(self) -> None:
        """See `Player`; modes and difficulties are drawn."""
        self.ale.setMode(int(self.rng.choice(self.ale.getAvailableModes())))
        self.ale.setDifficulty(int(self.rng.choice(self.ale.getAvailableDifficulties())))
        self.ale.reset_game()
        self.play(*self.warm_up)

    def play(self, low: int, high: int) -> None:
        """See `Player`."""
        for _ in range(int(self.rng.integers(low, high))):
            self._choose()
            for _ in range(_FRAME_SKIP):
                self.ale.act(self.action)
            if self.ale.game_over():
                self.ale.reset_game()

    def _choose(self) -> None:
        if self.rng.random() >= KEEP_ACTION:
            self.action = self.actions[int(self.rng.integers(len(self.actions)))]

    def clip(self, num_frames: int, size: int) -> np.ndarray | None:
        """See `Player`."""
        frames = np.empty((num_frames, size, size, 3), np.uint8)
        for frame in frames:
            self._choose()
            for _ in range(_FRAME_SKIP - 1):
                self.ale.act(self.action)
            screen = self.ale.getScreenRGB()
            self.ale.act(self.action)
            # The games draw some sprites in every second screen only: keep both.
            screen = np.maximum(screen, self.ale.getScreenRGB())
            frame[:] = shrink(screen, size)
            if self.ale.game_over():
                self.ale.reset_game()
                return None
        return frames
