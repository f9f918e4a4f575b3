"""Somebody without a plan who plays a game, and the clips of it that are worth keeping."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from PIL import Image

from video.decoding.container import VideoError

WINDOW = 16  # frames, about; each run of so many must move
KEEP_ACTION = 0.85  # chance to hold the last action, about 7 frames on average
CHANGE = 24  # grey levels of 255 by which a pixel must change to count as moving
_PATIENCE = 8  # clips thrown away before another game is begun
_MAX_TRIES = 200  # clips thrown away before a game is given up


class Player(ABC):
    """One session of a game.

    Attributes:
        warm_up: frames played before the first clip of a session, at least and less than.
        between: likewise, before each later clip.
        min_moving: share of pixels that change from one frame to the next, mean of a window; clips
            with less are dropped.
    """

    warm_up: tuple[int, int]
    between: tuple[int, int]
    min_moving = 0.003

    def __init__(self, game: str, rng: np.random.Generator) -> None:
        self.game = game
        self.rng = rng

    def record(self, num_frames: int, size: int) -> np.ndarray:
        """uint8 (F, H, W, 3): the first clip that moves throughout and has no restart in it."""
        for attempt in range(1, _MAX_TRIES + 1):
            if attempt % _PATIENCE == 0:  # an end screen, or a mode that waits for something
                self.start()
            self.play(*self.between)
            frames = self.clip(num_frames, size)
            if frames is not None and moves(frames, self.min_moving):
                return frames
        raise VideoError(f"{self.game} hardly moves: {_MAX_TRIES} clips in a row were dropped")

    @abstractmethod
    def start(self) -> None:
        """Begin a new game, drawn at random where there are several, and warm up."""

    @abstractmethod
    def play(self, low: int, high: int) -> None:
        """Play on for a random number of frames in low..high - 1."""

    @abstractmethod
    def clip(self, num_frames: int, size: int) -> np.ndarray | None:
        """The next frames, uint8 (F, H, W, 3), or None where a restart falls into them."""


def shrink(screen: np.ndarray, size: int) -> np.ndarray:
    """A screen (H, W, 3) uint8 as `size` × `size` pixels, each the mean of what it covers."""
    picture = Image.fromarray(screen).resize((size, size), Image.Resampling.BOX)
    return np.asarray(picture)


def moves(frames: np.ndarray, least: float) -> bool:
    """Whether this share of pixels changes in every window of frames (F, H, W, 3)."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).max(-1) > CHANGE
    share = change.mean((1, 2))  # (F - 1,)
    windows = np.array_split(share, max(1, round(len(share) / WINDOW)))
    return all(window.mean() >= least for window in windows)
