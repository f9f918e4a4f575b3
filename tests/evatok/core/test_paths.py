"""No output is an input by any spelling; no name from data leaves its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evatok.core.errors import EvatokError
from evatok.core.paths import MAX_NAME, refuse_overwrite, safe_names, short_name


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "set" / "clip.mp4"
    path.parent.mkdir()
    path.write_text("the only copy")
    return path


def spellings(clip: Path) -> dict[str, Path]:
    folder = clip.parent
    (folder.parent / "folder").symlink_to(folder)
    (folder.parent / "link.mp4").symlink_to(clip)
    (folder.parent / "hard.mp4").hardlink_to(clip)
    return {
        "itself": clip,
        "dots": folder / ".." / "set" / "clip.mp4",
        "relative": Path(os.path.relpath(clip)),
        "folder link": folder.parent / "folder" / "clip.mp4",
        "link": folder.parent / "link.mp4",
        "hard link": folder.parent / "hard.mp4",
    }


@pytest.mark.parametrize("name", ["itself", "dots", "relative", "folder link", "link", "hard link"])
@pytest.mark.parametrize("whole_set", [False, True])
def test_an_output_is_no_input(clip: Path, name: str, whole_set: bool) -> None:
    output = spellings(clip)[name]
    source = clip.parent if whole_set else clip
    with pytest.raises(EvatokError, match="would be written over the input"):
        refuse_overwrite([output.with_name("new"), output], [source])
    for swapped in (output,):  # a link as the input, its file as the output
        with pytest.raises(EvatokError):
            refuse_overwrite([clip], [swapped])


def test_new_files_and_other_files_are_fine(clip: Path) -> None:
    other = clip.with_name("other.txt")
    refuse_overwrite([clip.with_name("new.mp4"), clip.parent.parent / "x"], [clip.parent])
    other.write_text("")
    refuse_overwrite([other], [clip, clip.with_name("absent")])
    refuse_overwrite([], [clip.parent])


def test_folders(clip: Path) -> None:
    folder = clip.parent
    (folder.parent / "alias").symlink_to(folder)
    for output in (folder, folder.parent / "alias", folder / ".." / "set"):
        with pytest.raises(EvatokError, match="set: name another"):
            refuse_overwrite([output], [folder])
    for output in (folder / "new", folder.parent / "alias" / "deep" / "new"):
        refuse_overwrite([output], [folder])
        with pytest.raises(EvatokError, match="would be written over"):
            refuse_overwrite([output], [folder], inside=True)
    refuse_overwrite([folder.parent / "set2"], [folder], inside=True)


def test_links_in_circles_and_to_nothing(clip: Path) -> None:
    (clip.parent / "up").symlink_to(clip.parent)
    (clip.parent / "gone").symlink_to(clip.parent / "nothing")
    record = clip.parent.parent / "record.json"
    record.write_text("")
    refuse_overwrite([record], [clip.parent])
    (clip.parent / "to-record").symlink_to(record)
    with pytest.raises(EvatokError):
        refuse_overwrite([record], [clip.parent])


def test_plain_names_stay() -> None:
    names = ["Frogger", "Left 4", "ApplyEyeMakeup", "pouring water (into glass)", "éclair", "x.y"]
    assert safe_names(names) == names


@pytest.mark.parametrize(
    "name",
    ["../../x", "a/b", "a\\b", "..", ".", "", ".hidden", "a\0b", "a\nb", "C:x", "NUL", "com1.txt",
     "x.", "x ", "a?b", "caf\udce9", "x" * 300, "é" * 200, "\x1b[31m"],
)  # fmt: skip
def test_awkward_names_become_files_of_the_folder(tmp_path: Path, name: str) -> None:
    [safe] = safe_names([name])
    path = tmp_path / f"{safe}-0-000.mp4"
    path.write_text("")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert safe.isprintable() and not safe.startswith(".") and len(path.name.encode()) <= 200


@given(st.lists(st.text(st.characters(), max_size=300), unique=True, max_size=8))
def test_names_are_kept_apart(names: list[str]) -> None:
    safe = safe_names(names)
    assert len({name.casefold() for name in safe}) == len(names)
    for name in safe:
        assert Path(name).name == name and len(os.fsencode(name)) <= MAX_NAME + 9


def test_names_that_differ_in_case(tmp_path: Path) -> None:
    assert safe_names(["Left", "left", "LEFT"])[0] == "Left"
    assert len({name.casefold() for name in safe_names(["Left", "left", "LEFT"])}) == 3


def test_short_name() -> None:
    assert short_name("holiday", 20) == "holiday"
    long, other = short_name("é" * 127, 20), short_name("é" * 126 + "e", 20)
    assert len(long.encode()) <= 235 and long[:100] == other[:100] and long != other
