"""Procgen and Doom: the player and its levels, with a game of three rules in envpool's place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from video.arcade import doom, procgen
from video.arcade.footage import pack
from video.arcade.recorder import class_name, games_of, record
from video.dataset import ClipSampler, DataConfig
from video.decoding.container import VideoError
from video.lists import read_ucf101
from video.reading import read_frames

TINY: dict[str, Any] = {"train_clips": 2, "test_clips": 2, "num_frames": 8, "seed": 3}


class Env:
    """A square on a coloured ground; the level ends after 20 frames; action 0 changes nothing."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, name: str, seed: int, **settings: Any) -> None:
        Env.made.append({"name": name, "seed": seed, **settings})
        self.rng = np.random.default_rng(seed)
        self.first, self.count = settings.get("start_level", 0), settings.get("num_levels", 1)
        self.side = settings.get("img_height", 64)
        self.action_space = SimpleNamespace(n=3)
        self.actions: list[int] = []
        self._begin()

    def _begin(self) -> None:
        level = self.first + int(self.rng.integers(self.count))
        self.ground = np.random.default_rng(level).integers(0, 100, 3, np.uint8)
        self.place, self.age = 0, 0

    def _screen(self) -> np.ndarray:
        screen = np.broadcast_to(self.ground[:, None, None], (3, self.side, self.side)).copy()
        screen[:, 4:12, self.place : self.place + 8] = 250
        return screen[None]

    def reset(self) -> tuple[np.ndarray, dict]:
        return self._screen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        self.actions.append(int(action[0]))
        self.place = (self.place + 3 * (action[0] != 0)) % (self.side - 8)
        self.age += 1
        ended = self.age == 20
        if ended:
            self._begin()
        flag = np.array([ended])
        return self._screen(), np.zeros(1), flag, np.array([False]), {}  # type: ignore[return-value]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    module = ModuleType("envpool")
    module.make_gymnasium = Env  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "envpool", module)
    monkeypatch.setattr(Env, "made", [])
    return Env.made


def test_levels_of_training_and_testing_are_apart(
    stub: list[dict[str, Any]], tmp_path: Path
) -> None:
    root = record(tmp_path / "a", ("coinrun", "maze"), source="procgen", **TINY)
    assert (root / "classInd.txt").read_text() == "1 Coinrun\n2 Maze\n"
    assert len(list(root.rglob("*.avi"))) == 8
    spans = {(one["start_level"], one["num_levels"]) for one in stub}
    assert len(spans) == 2
    (first, count), (second, more) = sorted(spans)
    assert first + count <= second and second + more < 2**31
    assert {one["name"] for one in stub} == {"CoinrunEasy-v0", "MazeEasy-v0"}
    assert len({one["seed"] for one in stub}) == len(stub)
    again = record(tmp_path / "b", ("coinrun", "maze"), source="procgen", **TINY)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_a_clip_has_no_restart_in_it(stub: list[dict[str, Any]]) -> None:
    player = procgen.ProcgenPlayer("coinrun", np.random.default_rng(0), test=False)
    for _ in range(8):
        frames = player.record(16, 64)
        assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
        grounds = frames[:, 40, 40]
        assert (grounds == grounds[0]).all()
    with pytest.raises(VideoError, match="coinrun hardly moves: 200 clips"):
        player.record(24, 64)  # no level lasts so long


def test_what_changes_nothing_is_given_up(stub: list[dict[str, Any]]) -> None:
    player = procgen.ProcgenPlayer("maze", np.random.default_rng(0), test=False)
    player.actions, player.odds = np.array([0, 1]), np.array([0.5, 0.5])
    player.env.actions.clear()
    player.play(400, 401)
    done = np.array(player.env.actions)
    assert 0 < (done == 0).mean() < 0.3  # by chance alone it were a half


def test_other_sizes_are_shrunk(stub: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    assert procgen.ProcgenPlayer("coinrun", rng, test=True).record(8, 32).shape == (8, 32, 32, 3)
    assert doom.DoomPlayer("my_way_home", rng, test=True).record(8, 64).shape == (8, 64, 64, 3)


@pytest.mark.parametrize("source", ["procgen", "doom"])
def test_without_the_package_one_line_says_what_to_install(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(VideoError, match=r"evatok\[procgen\].*libqt5gui5"):
        record(tmp_path / "out", source=source)
    with pytest.raises(VideoError, match="no game 'pong'; it has"):
        record(tmp_path / "out", ("pong",), source=source)
    assert not list(tmp_path.iterdir())


def test_an_unknown_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no source 'chess'; there are atari, procgen, doom"):
        record(tmp_path / "out", source="chess")  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "count"), [("atari", 24), ("procgen", 16), ("doom", 7)])
def test_games_have_names_of_their_own(source: Any, count: int) -> None:
    games = games_of(source)
    assert list(games) == sorted(games) and len({class_name(game) for game in games}) == count


LIVE: dict[str, Any] = {
    "sources": [{"kind": "procgen", "games": ["maze", "coinrun", "ninja"], "clips": 7}],
    "num_frames": 8,
    "size": 32,
    "flip": True,
}


def test_live_clips_are_a_function_of_seed_and_step(stub: list[dict[str, Any]]) -> None:
    """Any step can be the first, any process can have any rows, and no clip comes twice."""
    config = DataConfig.model_validate(LIVE)
    sampler = ClipSampler(config, "train")
    batches = [sampler.batch(step, 4, seed=1) for step in range(5)]  # beyond an epoch
    clips = torch.cat([clips for clips, _, _ in batches])
    assert clips.shape == (20, 3, 8, 32, 32) and len({c.numpy().tobytes() for c in clips}) == 20
    later = ClipSampler(config, "train")
    again, labels, windows = later.batch(3, 4, seed=1)
    assert torch.equal(again, batches[3][0]) and windows == batches[3][2]
    assert torch.equal(labels, batches[3][1])
    for rank in range(2):
        part, _, _ = later.batch(2, 4, seed=1, rank=rank, world=2)
        assert torch.equal(part, batches[2][0][rank::2])
    other, _, _ = later.batch(3, 4, seed=2)
    assert not any(torch.equal(a, b) for a in other for b in clips)
    assert len({sampler.name(w) for _, _, ws in batches for w in ws}) == 20
    assert torch.bincount(torch.cat([labels for _, labels, _ in batches])).tolist() == [7, 7, 6]
    assert sampler.class_names == ["Coinrun", "Maze", "Ninja"]


def test_live_clips_that_are_held_out_have_levels_of_their_own(stub: list[dict[str, Any]]) -> None:
    config = DataConfig.model_validate(LIVE)
    held_out = ClipSampler(config, "test")
    windows = held_out.eval_clips(window="all")
    clips, labels = held_out.load(windows)
    assert len(windows) == 7 and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(held_out.load(windows[4:])[0], clips[4:])
    assert {one["start_level"] for one in stub} == {0}
    assert [one["name"][:4] for one in stub[:3]] == ["Coin", "Maze", "Ninj"]
    stub.clear()
    ClipSampler(config, "train").batch(0, 2, seed=0)
    assert all(one["start_level"] > 0 for one in stub)


def test_live_clips_mix_with_files(stub: list[dict[str, Any]], tmp_path: Path) -> None:
    root = record(tmp_path / "files", ("bigfish",), source="procgen", **TINY)
    sources = [*LIVE["sources"], {"kind": "ucf101", "root": root, "weight": 0.5}]
    config = DataConfig.model_validate(
        LIVE | {"sources": sources, "cache_dir": tmp_path / "cache", "workers": 1}
    )
    sampler = ClipSampler(config, "train")
    _, labels, windows = sampler.batch(0, 11, seed=0)
    assert sorted(window.source for window in windows) == [0] * 7 + [1] * 4
    assert all((label == 3) == (w.source == 1) for label, w in zip(labels, windows, strict=True))


def test_a_source_of_files_needs_a_root() -> None:
    with pytest.raises(ValueError, match="a source needs a root"):
        DataConfig.model_validate({"sources": [{"kind": "ucf101"}]})
    with pytest.raises(VideoError, match="no game 'pong'"):
        ClipSampler(
            DataConfig.model_validate({"sources": [{"kind": "procgen", "games": ["pong"]}]}), "test"
        )


def test_packed_clips_are_read_as_a_set_and_carry_their_licences(
    stub: list[dict[str, Any]], tmp_path: Path
) -> None:
    root = record(tmp_path / "all", ("coinrun", "maze", "ninja"), source="procgen", **TINY)
    size = pack(root, tmp_path / "few", ("Ninja", "Coinrun"), clips=2, num_frames=4)
    files = [path for path in (tmp_path / "few").rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    items = read_ucf101(tmp_path / "few", "test")
    assert [(item.label, item.class_name) for item in items] == [
        *[(0, "Coinrun")] * 2,
        *[(1, "Ninja")] * 2,
    ]
    held_out = {item.id for item in read_ucf101(root, "test")}
    for item in items:
        assert item.id in held_out and tuple(read_frames(item.path).shape) == (4, 64, 64, 3)
    assert "GameArtGuppy" in (tmp_path / "few" / "LICENCES.txt").read_text()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"classes": ("Pong",)}, "no class 'Pong'; there are Coinrun, Maze, Ninja"),
        ({"clips": 3}, "has 2 test videos, not 3"),
        ({"clips": 1, "num_frames": 9}, "8 frames, not 9"),
        ({"clips": 1, "num_frames": 4, "max_bytes": 100}, "bytes are more than 100"),
    ]
    for settings, said in bad:
        with pytest.raises(VideoError, match=said):
            pack(root, tmp_path / "bad", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "few"]
    with pytest.raises(VideoError, match="few exists"):
        pack(root, tmp_path / "few", clips=1)
