"""The name that somebody may have meant, in every message that lists names."""

from __future__ import annotations

from pathlib import Path

import pytest

from evatok.cli.app import main
from evatok.core.suggest import did_you_mean, did_you_mean_file


def test_the_nearest_name_in_any_case() -> None:
    known = ["Frogger", "Frostbite", "Boxing"]
    assert did_you_mean("froger", known) == " (did you mean 'Frogger'?)"
    assert did_you_mean("BOXING", known) == " (did you mean 'Boxing'?)"
    assert did_you_mean("Zaxxon", known) == "" == did_you_mean("", [])


def test_the_nearest_file_of_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").touch()
    assert did_you_mean_file(tmp_path / "holidays.mp4") == " (did you mean 'holiday.mp4'?)"
    assert did_you_mean_file(tmp_path / "none" / "holiday.mp4") == ""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("reconstruct {videos}/clp.mp4 -o {out}", "clip.mp4"),
        ("train nano/prxy", "nano/proxy"),
        ("info nanno", "nano"),
        ("pipeline configs/nano --until serch", "search"),
        ("evaluate arcade-rfdv", "arcade-rfvd"),
        ("fvd {videos} {videos} --features i3", "i3d"),
        ("fvd {videos} {videos} --metrics kdv", "kvd"),
        ("fvd {videos} {videos} --preset larp-ufc", "larp-ucf"),
        ("sample --class Froger -o {out}", "Frogger"),
        ("arcade {out} --games froger", "frogger"),
        ("train nano/proxy train.stesp=3", "steps"),
        ("leadrboard show", "leaderboard"),
    ],
)
def test_commands_tell_it(
    words: str,
    meant: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    (tmp_path / "clip.mp4").touch()
    places = {"videos": tmp_path, "out": tmp_path / "out"}
    assert main(words.format(**places).split()) == 2
    told = capsys.readouterr().err.splitlines()[-1].casefold()
    assert f"did you mean '{meant}'".casefold() in told
