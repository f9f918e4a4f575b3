"""Record a small video data set by playing games at random.

Files, names and lists are those of UCF-101, so whatever reads UCF-101 reads it unchanged:

    root/classInd.txt, trainlist01.txt, testlist01.txt, arcade.json (the settings)
    root/<Class>/v_<Class>_g08_c01.avi      groups 1-7 are for testing, 8-25 for training

As in UCF-101 the clips of one group come from one source: here one session of a game with its own
seed. Between two clips of a session a random player plays on for some seconds, so clips show
different situations: a model should not be able to paint a clip after having recognised the game.
The same settings give the same bytes with any number of workers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from video.arcade import atari, doom, procgen
from video.arcade.player import WINDOW, Player
from video.arcade.processes import folder_lock, in_workers
from video.decoding.container import VideoError

Source = Literal["atari", "procgen", "doom"]
_SOURCES = {"atari": atari, "procgen": procgen, "doom": doom}

TEST_GROUPS = range(1, 8)
TRAIN_GROUPS = range(8, 26)

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
    source: Source = "atari"
    format: int = 1  # raised when the recorder changes what it writes


@dataclass(frozen=True)
class _Session:
    """One group of clips: all the work of one player."""

    game: str
    group: int
    clips: int
    settings: ArcadeSettings
    root: Path


def games_of(source: Source) -> tuple[str, ...]:
    """All games of a source, sorted."""
    return _SOURCES[source].GAMES


def class_name(game: str) -> str:
    """The class name of a game: "up_n_down" becomes "UpNDown"."""
    return "".join(word.capitalize() for word in game.split("_"))


def record(
    root: str | Path,
    games: Sequence[str] | None = None,
    train_clips: int = 150,
    test_clips: int = 15,
    num_frames: int = 48,
    size: int = 64,
    seed: int = 0,
    fps: int = 15,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    source: Source = "atari",
) -> Path:
    """Record `train_clips + test_clips` files of each game and return `root`.

    Args:
        root: the folder, which appears under its name when it is complete. One that was recorded
            with the same settings is left as it is.
        games: names of the source's games (of Atari: ROM ids of ale-py); None = `games_of`.
        train_clips: files of each game.
        test_clips: likewise.
        num_frames: of a file. Atari shows 15 a second of game time, the others each of theirs.
        size: height and width in pixels, even; the whole screen is squashed to it.
        seed: of everything that is drawn.
        fps: written into the files.
        num_workers: processes, which end with this one; does not change the result.
        on_progress: called with the number of files written and wanted.
        source: what is played.

    Raises:
        VideoError: settings that cannot be, another folder of that name, games or packages that
            are not there, or another process that records into the same folder.
    """
    root = Path(root)
    if source not in _SOURCES:
        raise VideoError(f"no source {source!r}; there are {', '.join(_SOURCES)}")
    games = games_of(source) if games is None else tuple(games)
    settings = ArcadeSettings(games, train_clips, test_clips, num_frames, size, seed, fps, source)
    _check(settings)
    if _is_there(root, settings):
        return root
    _SOURCES[source].check_games(games)
    with folder_lock(root) as partial:
        if partial is not None:
            _record_all(partial, settings, num_workers, on_progress)
    _is_there(root, settings)  # perhaps another process was faster, with other settings
    return root


def _is_there(root: Path, settings: ArcadeSettings) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    _check_recorded(root, settings)
    return True


def _record_all(
    root: Path,
    settings: ArcadeSettings,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    for game in settings.games:
        (root / class_name(game)).mkdir(parents=True)
    sessions = _sessions(settings, root.resolve())
    files: list[str] = []
    total = sum(session.clips for session in sessions)
    # Doom leaves files in the working directory: it always plays in another process.
    apart = num_workers > 1 or settings.source == "doom"
    for written in (
        in_workers(_record_session, sessions, num_workers)
        if apart
        else map(_record_session, sessions)
    ):
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
    found = {"source": "atari"} | found  # older ones do not name it
    wanted = json.loads(json.dumps(asdict(settings)))
    differ = sorted(key for key in found.keys() | wanted if found.get(key) != wanted.get(key))
    if differ:
        listed = ", ".join(f"{key} {found.get(key)} not {wanted.get(key)}" for key in differ)
        raise VideoError(
            f"{root} was recorded with other settings ({listed}); "
            "choose another folder or delete this one"
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


def _player(session: _Session, rng: np.random.Generator) -> Player:
    test = session.group in TEST_GROUPS
    if session.settings.source == "procgen":
        return procgen.ProcgenPlayer(session.game, rng, test)
    if session.settings.source == "doom":
        return doom.DoomPlayer(session.game, rng, test)
    return atari.AtariPlayer(session.game, rng)


def _record_session(session: _Session) -> list[str]:
    """Record all clips of a session and return their paths relative to the root."""
    settings = session.settings
    rng = np.random.default_rng([settings.seed, zlib.crc32(session.game.encode()), session.group])
    player = _player(session, rng)
    name = class_name(session.game)
    written = []
    for clip in range(1, session.clips + 1):
        frames = player.record(settings.num_frames, settings.size)
        path = f"{name}/v_{name}_g{session.group:02d}_c{clip:02d}.avi"
        _encode(session.root / path, frames, settings.fps)
        written.append(path)
    return written


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write uint8 (F, H, W, 3) as H.264 in AVI, the container UCF-101 readers look for.

    One thread and no B-frames: AVI stores no presentation times, and the bytes must repeat.
    """
    options = {"crf": str(_CRF), "bf": "0", "g": str(WINDOW), "threads": "1"}
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
