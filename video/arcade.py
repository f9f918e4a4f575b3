"""Record a small video data set by playing old video games at random.

The Arcade Learning Environment carries its games' ROMs, so this data set needs no download. Files,
names and lists are those of UCF-101, so whatever reads UCF-101 reads it unchanged:

    root/classInd.txt, trainlist01.txt, testlist01.txt, arcade.json (the settings)
    root/<Class>/v_<Class>_g08_c01.avi      groups 1-7 are for testing, 8-25 for training

As in UCF-101 the clips of one group come from one source: here one session of the emulator with
its own seed, game mode and difficulty. Between two clips of a session a random player plays on for
some seconds, so clips show different situations: a model should not be able to paint a clip after
having recognised the game. The same settings give the same bytes with any number of workers.
"""

import json
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

from video.io import VideoError

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

TEST_GROUPS = range(1, 8)
TRAIN_GROUPS = range(8, 26)

_FRAME_SKIP = 4  # emulator frames (60 a second) per recorded frame
_WARM_UP = (60, 360)  # frames played before the first clip of a session: 4 to 24 seconds
_BETWEEN = (30, 120)  # frames played before each later one: 2 to 8 seconds
_KEEP_ACTION = 0.85  # chance to hold the last action, about 7 frames on average
_WINDOW = 16  # frames, about; each run of so many must move
_MIN_MOVING = 0.003  # share of pixels that change from one frame to the next, mean of a window
_CHANGE = 24  # grey levels of 255 by which a pixel must change to count as moving
_PATIENCE = 8  # clips thrown away before another game is begun
_MAX_TRIES = 200  # clips thrown away before a game is given up
_CRF = 10  # H.264 quality, visually lossless
_MAX_PER_GROUP = 99  # names have two digits for the clip


@dataclass(frozen=True)
class ArcadeSettings:
    """All that decides the recorded bytes, saved as arcade.json."""

    games: tuple[str, ...]
    train_clips: int  # files per game
    test_clips: int  # files per game
    num_frames: int
    size: int  # pixels, height and width
    seed: int
    fps: int
    format: int = 1  # raised when the recorder changes what it writes


@dataclass(frozen=True)
class _Session:
    """One group of clips: all the work of one emulator run."""

    game: str
    group: int
    clips: int
    settings: ArcadeSettings
    root: Path


def class_name(game: str) -> str:
    """The class name of a ROM id: "up_n_down" becomes "UpNDown"."""
    return "".join(word.capitalize() for word in game.split("_"))


def record(
    root: str | Path,
    games: Sequence[str] = GAMES,
    train_clips: int = 150,
    test_clips: int = 15,
    num_frames: int = 48,
    size: int = 64,
    seed: int = 0,
    fps: int = 15,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Record `train_clips + test_clips` files of each game and return `root`.

    games: ROM ids of ale-py. num_frames: frames per file, at 15 a second of game time whatever
    the `fps` written into the file. size: height and width in pixels, even; the whole screen is
    squashed to it. num_workers: processes; does not change the result. on_progress: called with
    the number of files written and wanted. A folder recorded with the same settings is left as it
    is; any other existing folder is a VideoError. The folder appears under its name when complete.
    """
    root = Path(root)
    settings = ArcadeSettings(tuple(games), train_clips, test_clips, num_frames, size, seed, fps)
    _check(settings)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _check_recorded(root, settings)
        return root
    _check_games(settings.games)
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _record_all(partial, settings, num_workers, on_progress)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _record_all(
    root: Path,
    settings: ArcadeSettings,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    for game in settings.games:
        (root / class_name(game)).mkdir(parents=True)
    sessions = _sessions(settings, root)
    files: list[str] = []
    total = sum(session.clips for session in sessions)
    for written in _map(_record_session, sessions, num_workers):
        files += written
        if on_progress is not None:
            on_progress(len(files), total)
    _write_lists(root, settings, files)


def _check(settings: ArcadeSettings) -> None:
    if not settings.games or len(set(settings.games)) != len(settings.games):
        raise VideoError(f"games must be distinct and at least one: {list(settings.games)}")
    limits = {
        "train_clips": (1, _MAX_PER_GROUP * len(TRAIN_GROUPS)),
        "test_clips": (1, _MAX_PER_GROUP * len(TEST_GROUPS)),
        "num_frames": (2, 10_000),
        "size": (16, 1024),
        "seed": (0, 2**32 - 1),
        "fps": (1, 240),
    }
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise VideoError(f"{name} {value} is not in {low}..{high}")
    if settings.size % 2:
        raise VideoError(f"size {settings.size} is odd; the video format needs an even one")


def _check_recorded(root: Path, settings: ArcadeSettings) -> None:
    """Raise unless `root` was recorded with these settings."""
    path = root / "arcade.json"
    if not path.is_file():
        raise VideoError(f"{root} exists and is no arcade recording; choose another folder")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VideoError(f"{path} is damaged ({error}): record into another folder") from None
    if not isinstance(found, dict):
        raise VideoError(f"{path} is damaged (no settings): record into another folder")
    wanted = json.loads(json.dumps(asdict(settings)))
    differ = sorted(key for key in found.keys() | wanted if found.get(key) != wanted.get(key))
    if differ:
        listed = ", ".join(f"{key} {found.get(key)} not {wanted.get(key)}" for key in differ)
        raise VideoError(
            f"{root} was recorded with other settings ({listed}); "
            "choose another folder or delete this one"
        )


def _load_emulator() -> Any:
    try:
        import ale_py.roms
    except ImportError as error:
        raise VideoError(
            'recording arcade videos needs ale-py; install it with pip install "evatok[arcade]"'
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def _check_games(games: Sequence[str]) -> None:
    known = sorted(set(_load_emulator().roms.get_all_rom_ids()) - _FOR_TWO_PLAYERS)
    for game in games:
        if game not in known:
            raise VideoError(
                f"ale-py has no one-player game named {game!r}; its names read like {known[0]!r}"
            )


def _sessions(settings: ArcadeSettings, root: Path) -> list[_Session]:
    """Clips of a split are dealt to its groups in turn; groups without a clip are left out."""
    sessions = []
    splits = ((TEST_GROUPS, settings.test_clips), (TRAIN_GROUPS, settings.train_clips))
    for game in settings.games:
        for groups, clips in splits:
            for index, group in enumerate(groups):
                count = len(range(index, clips, len(groups)))
                if count:
                    sessions.append(_Session(game, group, count, settings, root))
    return sessions


def _map(
    function: Callable[[_Session], list[str]], sessions: Sequence[_Session], num_workers: int
) -> Iterator[list[str]]:
    if num_workers <= 1:
        yield from map(function, sessions)
        return
    # Spawned, because forking a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(function, sessions)


def _record_session(session: _Session) -> list[str]:
    """Record all clips of a session and return their paths relative to the root."""
    settings = session.settings
    rng = np.random.default_rng([settings.seed, zlib.crc32(session.game.encode()), session.group])
    player = _Player(session.game, rng)
    name = class_name(session.game)
    written = []
    for clip in range(1, session.clips + 1):
        frames = player.record(settings.num_frames, settings.size)
        path = f"{name}/v_{name}_g{session.group:02d}_c{clip:02d}.avi"
        _encode(session.root / path, frames, settings.fps)
        written.append(path)
    return written


class _Player:
    """A game and somebody without a plan who plays it, holding each action for a while."""

    def __init__(self, game: str, rng: np.random.Generator):
        ale_py = _load_emulator()
        self.game = game
        self.rng = rng
        self.ale: ALEInterface = ale_py.ALEInterface()
        # A seed of 0 would mean the time of day.
        self.ale.setInt("random_seed", int(rng.integers(1, 2**31)))
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(game))
        self.actions = self.ale.getMinimalActionSet()
        self.action = self.actions[0]
        self._start()

    def record(self, num_frames: int, size: int) -> np.ndarray:
        """uint8 (F, H, W, 3): the first clip that moves throughout and has no restart in it."""
        for attempt in range(1, _MAX_TRIES + 1):
            if attempt % _PATIENCE == 0:  # an end screen, or a mode that waits for something
                self._start()
            self._play(*_BETWEEN)
            frames = self._clip(num_frames, size)
            if frames is not None and _moves(frames):
                return frames
        raise VideoError(f"{self.game} hardly moves: {_MAX_TRIES} clips in a row were dropped")

    def _start(self) -> None:
        """A new game in a mode and a difficulty drawn at random, played for a while."""
        self.ale.setMode(int(self.rng.choice(self.ale.getAvailableModes())))
        self.ale.setDifficulty(int(self.rng.choice(self.ale.getAvailableDifficulties())))
        self.ale.reset_game()
        self._play(*_WARM_UP)

    def _play(self, low: int, high: int) -> None:
        """Play on for a random number of frames in low..high - 1."""
        for _ in range(int(self.rng.integers(low, high))):
            self._choose()
            for _ in range(_FRAME_SKIP):
                self.ale.act(self.action)
            if self.ale.game_over():
                self.ale.reset_game()

    def _choose(self) -> None:
        if self.rng.random() >= _KEEP_ACTION:
            self.action = self.actions[int(self.rng.integers(len(self.actions)))]

    def _clip(self, num_frames: int, size: int) -> np.ndarray | None:
        frames = np.empty((num_frames, size, size, 3), np.uint8)
        for frame in frames:
            self._choose()
            for _ in range(_FRAME_SKIP - 1):
                self.ale.act(self.action)
            screen = self.ale.getScreenRGB()
            self.ale.act(self.action)
            # The games draw some sprites in every second screen only: keep both.
            screen = np.maximum(screen, self.ale.getScreenRGB())
            picture = Image.fromarray(screen).resize((size, size), Image.Resampling.BOX)
            frame[:] = np.asarray(picture)
            if self.ale.game_over():
                self.ale.reset_game()
                return None
        return frames


def _moves(frames: np.ndarray) -> bool:
    """Whether enough pixels change in every window of frames (F, H, W, 3)."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).max(-1) > _CHANGE
    share = change.mean((1, 2))  # (F - 1,)
    windows = np.array_split(share, max(1, round(len(share) / _WINDOW)))
    return all(window.mean() >= _MIN_MOVING for window in windows)


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write uint8 (F, H, W, 3) as H.264 in AVI, the container UCF-101 readers look for.

    One thread and no B-frames: AVI stores no presentation times, and the bytes must repeat.
    """
    options = {"crf": str(_CRF), "bf": "0", "g": str(_WINDOW), "threads": "1"}
    if min(frames.shape[1:3]) < 64:
        # In smaller pictures x264's look at the frames ahead ("mbtree") takes in memory that nobody
        # has written: one file in a hundred came out in other bytes.
        options["x264-params"] = "mbtree=0"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_lists(root: Path, settings: ArcadeSettings, files: Sequence[str]) -> None:
    """The three lists of UCF-101 and, last, the settings."""
    label = {class_name(game): index for index, game in enumerate(sorted(settings.games), 1)}
    train, test = [], []
    for name in files:
        folder, _, group_and_clip = name.partition("/")
        group = int(group_and_clip.rpartition("_g")[2][:2])
        if group in TRAIN_GROUPS:
            train.append(f"{name} {label[folder]}")
        else:
            test.append(name)
    lists = {
        "classInd.txt": [f"{index} {name}" for name, index in label.items()],
        "trainlist01.txt": train,
        "testlist01.txt": test,
        "arcade.json": [json.dumps(asdict(settings), indent=2)],
    }
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
