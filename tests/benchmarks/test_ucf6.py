"""The six-class subset: complete or absent, read as a set afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ucf6 import LISTS, copy_subset
from video.official import survey_ucf101


def test_copied_subset_is_complete(tmp_path: Path) -> None:
    whole = tmp_path / "UCF-101"
    names = [
        line.split()[0]
        for path in sorted(LISTS.glob("*list01.txt"))
        for line in path.read_text("utf-8").splitlines()
    ]
    for name in [*names, "Archery/v_Archery_g99_c01.avi"]:
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_bytes(name.encode())
    assert copy_subset(whole, tmp_path / "made" / "ucf6") == 303
    assert len(list((tmp_path / "made" / "ucf6").rglob("*.avi"))) == 303
    assert len(survey_ucf101(tmp_path / "made" / "ucf6").present) == 303
    with pytest.raises(ValueError, match="exists"):
        copy_subset(whole, tmp_path / "made" / "ucf6")


def test_missing_videos_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "UCF-101").mkdir()
    with pytest.raises(ValueError, match="lacks 303 of 303 videos"):
        copy_subset(tmp_path / "UCF-101", tmp_path / "ucf6")
    assert not (tmp_path / "ucf6").exists()
