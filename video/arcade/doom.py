"""Scenes of the first-person game Doom, with the free pictures of Freedoom.

A scene has one map, which is the same in training and in testing: where things stand and what the
player does differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from video.arcade import pool
from video.arcade.pool import PoolPlayer, load_envpool

# Class name of ours → name of envpool's environment; those in colour.
_SCENES = {
    "deadly_corridor": "DeadlyCorridor-v1",
    "defend_the_center": "DefendTheCenter-v1",
    "defend_the_line": "DefendTheLine-v1",
    "health_gathering": "HealthGathering-v1",
    "health_gathering_supreme": "HealthGatheringSupreme-v1",
    "my_way_home": "MyWayHome-v1",
    "take_cover": "TakeCover-v1",
}
GAMES = tuple(_SCENES)
_SIDE = 128  # pixels of the drawn picture


def check_games(games: Sequence[str]) -> None:
    """See `pool.check_games`."""
    pool.check_games(games, GAMES, "Doom")


class DoomPlayer(PoolPlayer):
    """A session of one scene; see `Player`.

    The engine leaves files in the working directory.
    """

    warm_up = (0, 60)
    between = (4, 40)

    def make(self, seed: int) -> Any:
        """See `PoolPlayer`."""
        env = load_envpool().make_gymnasium(
            _SCENES[self.game],
            num_envs=1,
            num_threads=1,
            seed=seed,
            stack_num=1,
            use_combined_action=True,
            img_height=_SIDE,
            img_width=_SIDE,
        )
        self.actions = np.arange(int(env.action_space.n))
        self.odds = np.full(len(self.actions), 1 / len(self.actions))
        return env
