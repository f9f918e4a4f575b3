"""Procgen: sixteen games drawn at 64 × 64 pixels whose every level is generated from its number.

Training and test levels have numbers of their own: a test clip shows a level that no training clip
has shown, put together from the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from video.arcade import pool
from video.arcade.pool import PoolPlayer, load_envpool

TEST_LEVELS = (0, 1_000_000)  # first, number of
TRAIN_LEVELS = (1_000_000, 2_000_000_000)

# Actions by their numbers: a direction, nothing (4), or what the game has on its keys (9 to 12).
_DOWN_LEFT, _LEFT, _UP_LEFT, _DOWN, _WAIT, _UP, _DOWN_RIGHT, _RIGHT, _UP_RIGHT = range(9)
_FIRE = 9
_FOUR = {_LEFT: 1, _DOWN: 1, _UP: 1, _RIGHT: 1}
_EIGHT = {action: 1 for action in range(9) if action != _WAIT}
_RUN = {_RIGHT: 3, _UP_RIGHT: 3, _UP: 1, _LEFT: 1, _UP_LEFT: 1}  # the way on is to the right

# What the player does: action → how often, relative to the others. Plain chance stands still.
_HABITS: dict[str, Mapping[int, float]] = {
    "bigfish": _EIGHT,
    "bossfight": _EIGHT | {_FIRE: 3},
    "caveflyer": {_UP: 4, _LEFT: 1, _RIGHT: 1, _FIRE: 1},
    "chaser": _FOUR,
    "climber": {_LEFT: 1, _RIGHT: 1, _UP_LEFT: 2, _UP_RIGHT: 2, _UP: 1},
    "coinrun": _RUN,
    "dodgeball": _FOUR | {_FIRE: 1},
    "fruitbot": {_LEFT: 1, _RIGHT: 1, _WAIT: 1, _FIRE: 0.3},
    "heist": _FOUR,
    "jumper": {_LEFT: 1, _RIGHT: 1, _UP_LEFT: 2, _UP_RIGHT: 2, _UP: 1},
    "leaper": {_UP: 2, _LEFT: 1, _RIGHT: 1, _WAIT: 1},
    "maze": _FOUR,
    "miner": _FOUR,
    "ninja": _RUN | {_FIRE: 1},
    "plunder": {_LEFT: 1, _RIGHT: 1, _FIRE: 1},
    "starpilot": _EIGHT | {_FIRE: 4},
}
GAMES = tuple(_HABITS)
_MIN_MOVING = {"maze": 0.0005}  # a mouse of seven pixels is all that moves


def check_games(games: Sequence[str]) -> None:
    """See `pool.check_games`."""
    pool.check_games(games, GAMES, "Procgen")


class ProcgenPlayer(PoolPlayer):
    """A session: level after level of one split; see `Player`."""

    warm_up = (0, 60)
    between = (4, 40)

    def __init__(self, game: str, rng: np.random.Generator, test: bool) -> None:
        habits = _HABITS[game]
        self.actions = np.array(list(habits))
        self.odds = np.array(list(habits.values()), dtype=float)
        self.odds /= self.odds.sum()
        self.min_moving = _MIN_MOVING.get(game, self.min_moving)
        super().__init__(game, rng, test)

    def make(self, seed: int) -> Any:
        """See `PoolPlayer`."""
        first, count = TEST_LEVELS if self.test else TRAIN_LEVELS
        return load_envpool().make_gymnasium(
            f"{self.game.capitalize()}Easy-v0",
            num_envs=1,
            num_threads=1,
            seed=seed,
            start_level=first,
            num_levels=count,
        )
