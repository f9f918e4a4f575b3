"""Downloaded sets against their lists."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evatok.cli.app import main
from video.decoding.container import VideoError
from video.lists import Split, read_kinetics_csv, read_ucf101
from video.official import survey
from video.writing import write_video


def video(path: Path, frames: int = 4) -> None:
    write_video(path, np.full((frames, 32, 40, 3), 90, np.uint8), 25)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Two classes; one video of each list is missing, one is in no list."""
    root = tmp_path / "UCF-101"
    for name in ("Archery", "Biking"):
        for group in (1, 9):
            video(root / name / f"v_{name}_g{group:02d}_c01.avi")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Surfing\n")
    train = [f"{n}/v_{n}_g09_c01.avi" for n in ("Archery", "Biking")]
    train.append("Biking/v_Biking_g10_c01.avi")
    for fold in (1, 2):
        (lists / f"trainlist0{fold}.txt").write_text(
            "".join(f"{file} {1 + ('Biking' in file)}\n" for file in train)
        )
        (lists / f"testlist0{fold}.txt").write_text(
            "Archery/v_Archery_g01_c01.avi\nArchery/v_Archery_g02_c01.avi\n"
        )
    return root


def test_ucf101_by_its_lists(ucf: Path) -> None:
    result = survey("ucf101", ucf).summary()
    assert result["splits"] == [
        {"split": "test", "listed": 2, "there": 1},
        {"split": "train", "listed": 3, "there": 2},
    ]
    assert result["first_missing"] == [
        "Biking/v_Biking_g10_c01.avi",
        "Archery/v_Archery_g02_c01.avi",
    ]
    assert result["first_extra"] == ["Biking/v_Biking_g01_c01.avi"]
    assert {"class": "Biking", "listed": 2, "there": 1} in result["incomplete_classes"]
    notes = " ".join(result["notes"])
    assert "3 train videos are listed; the whole set has 9537" in notes and "Surfing" in notes
    assert "2 classes are listed; the whole set has 101" in notes


def test_ucf101_without_lists(ucf: Path) -> None:
    for path in (ucf / "ucfTrainTestlist").iterdir():
        path.unlink()
    found = survey("ucf101", ucf)
    assert {(e.file[-11:], e.split) for e in found.entries} == {
        ("g01_c01.avi", "test"),
        ("g09_c01.avi", "train"),
    }
    assert "split 1 is told from the file names" in found.notes[0]


def test_ucf101_prepared_is_read_by_the_loader(
    ucf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["data", "ucf101", str(ucf), "--out", str(out), "--size", "16", "--workers", "1"]
    result = run(capsys, *words, "--larp-lists")
    assert result["missing"] == 2 and result["prepared"]["files"] == 3
    assert [item.id for item in read_ucf101(out, "train")] == [
        "Archery/v_Archery_g09_c01.mp4",
        "Biking/v_Biking_g09_c01.mp4",
    ]
    assert [item.label for item in read_ucf101(out, "test", fold=2)] == [0]
    assert all(item.path.is_file() for item in read_ucf101(out, "train", fold=2))
    rows = list(csv.DictReader((out / "metadata" / "ucf101_val.csv").read_text().splitlines()))
    assert rows[0]["id"] == "0" and rows[0]["path"].startswith("data/ucf101/Archery/")
    assert json.loads((out / "prepared.json").read_text()) == result["prepared"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("HandstandPushups/", "HandstandPushups"), ("", "HandStandPushups"),
     ("UCF-101/HandstandPushups/", "HandstandPushups"), ("videos/", "HandStandPushups")],
)  # fmt: skip
def test_ucf101_without_lists_is_prepared_and_read(
    folder: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The set's files and folders spell one class in two ways."""
    root, out = tmp_path / "copy", tmp_path / "out"
    for group in (1, 9):
        video(root / f"{folder}v_HandStandPushups_g{group:02d}_c01.avi")
    words = ("--out", str(out), "--size", "16", "--workers", "1", "--larp-lists")
    run(capsys, "data", "ucf101", str(root), *words)
    groups: dict[Split, str] = {"train": "09", "test": "01"}
    for split, group in groups.items():
        (item,) = read_ucf101(out, split)
        assert item.class_name == name and item.path.is_file()
        assert item.id == f"{folder}v_HandStandPushups_g{group}_c01.mp4"
    assert (out / "classInd.txt").read_text() == f"1 {name}\n"
    (line,) = (out / "trainlist01.txt").read_text().splitlines()
    assert line.split()[1] == "1"


def test_ucf101_lists_are_read_before_anything_is_rewritten(
    ucf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ucf / "ucfTrainTestlist" / "trainlist03.txt").write_bytes(b"\xff\xfe")
    out = ucf.parent / "out"
    assert main(["data", "ucf101", str(ucf), "--out", str(out), "--size", "16"]) == 2
    assert "trainlist03.txt: list is not text" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("layout", ["flat", "by class"])
def test_kinetics_in_both_layouts(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "k600"
    folder = {"flat": "val", "by class": "val/high jump"}[layout]
    video(root / folder / "abcdefghijk_000010_000020.mp4")
    video(root / "train" / "lmnopqrstuv_000001_000011.mp4")
    (root / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nhigh jump,abcdefghijk,10,20,validate\n"
        "yoga,gone_______,3,13,validate\n"
    )
    (root / "train.csv").write_text(
        "id,path,action,label\n1,lmnopqrstuv_000001_000011.mp4,yoga,1\n"
    )
    out = tmp_path / "out"
    result = run(capsys, "data", "k600", str(root), "--out", str(out), "--size", "16")
    assert result["first_missing"] == ["val/gone________000003_000013.mp4"]
    (item,) = read_kinetics_csv(out / "k600_val.csv", out)
    assert item.path.is_file() and item.class_name == "high jump"
    assert read_kinetics_csv(out / "k600_train.csv", out)[0].path.is_file()


def test_a_video_in_two_lists_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LARP's list of the validation videos beside the official one."""
    root, out = tmp_path / "k600", tmp_path / "out"
    video(root / "val" / "abcdefghijk_000010_000020.mp4")
    (root / "k600_val.csv").write_text(
        "id,path,action,label\n1,abcdefghijk_000010_000020.mp4,yoga,1\n"
    )
    (root / "annotations").mkdir()
    (root / "annotations" / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nyoga,abcdefghijk,10,20,validate\n"
    )
    result = run(capsys, "data", "k600", str(root), "--out", str(out), "--size", "16")
    assert any("1 rows name a file that another row names" in note for note in result["notes"])
    assert len(read_kinetics_csv(out / "k600_val.csv", out)) == 1


def test_webvid_keeps_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "webvid"
    video(root / "000001_000050" / "17.mp4", 50)
    (root / "results_2M_val.csv").write_text(
        'videoid,contentUrl,duration,page_dir,name\n17,x,PT2S,000001_000050,"A cat,\n asleep"\n'
        "18,x,PT2S,000001_000050,Rain\n"
    )
    out = tmp_path / "out"
    result = run(capsys, "data", "webvid", str(root), "--out", str(out), "--size", "16")
    assert result["first_missing"] == ["000001_000050/18.mp4"]
    assert result["prepared"]["frames"] == 6  # 0 to 1.96 s at 3 a second
    (row,) = csv.DictReader(io.StringIO((out / "val.csv").read_bytes().decode(), newline=""))
    assert row["caption"] == "A cat,\n asleep" and (out / row["path"]).is_file()
    assert read_kinetics_csv(out / "val.csv", out)[0].path.is_file()


def test_damage_is_named_in_the_check(ucf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = ucf / "Archery" / "v_Archery_g09_c01.avi"
    broken.write_bytes(broken.read_bytes()[:200])
    result = run(capsys, "data", "ucf101", str(ucf), "--full", "--workers", "1")
    assert [row["file"] for row in result["damaged"]] == ["Archery/v_Archery_g09_c01.avi"]
    out = str(ucf.parent / "out")
    assert main(["data", "ucf101", str(ucf), "--out", out, "--max-damaged", "0"]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 videos are damaged, more than max_damaged 0 " in error


def test_a_cut_file_is_damaged_in_the_check(
    ucf: Path, assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(assets / "odd" / "trunc.avi", ucf / "Archery" / "v_Archery_g09_c01.avi")
    result = run(capsys, "data", "ucf101", str(ucf), "--full", "--workers", "1")
    (row,) = result["damaged"]
    assert "damaged: 25 of 40 frames" in row["reason"]


@pytest.mark.parametrize(
    ("option", "told"),
    [("--fps=0", "finite number above 0"), ("--fps=-1", "finite number above 0"),
     ("--fps=nan", "finite number"), ("--preset=bogus", "none of x264's")],
)  # fmt: skip
def test_settings_of_copies_are_one_line(
    ucf: Path, capsys: pytest.CaptureFixture[str], option: str, told: str
) -> None:
    out = ucf.parent / "out"
    assert main(["data", "ucf101", str(ucf), "--workers", "1", "--out", str(out), option]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1] and not out.exists()


def test_lists_of_spreadsheets(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte order mark is read over; a cell that cannot be read is named."""
    shutil.copy(assets / "odd" / "k600_bom.csv", tmp_path / "val.csv")
    assert run(capsys, "data", "k600", str(tmp_path))["missing"] == 1
    shutil.copy(assets / "odd" / "k600_no_start.csv", tmp_path / "val.csv")
    assert main(["data", "k600", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "val.csv, line 2: column time_start is empty" in error
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start\nyoga,abc,1\n")
    assert main(["data", "k600", str(tmp_path)]) == 2
    assert "val.csv: has no column time_end" in capsys.readouterr().err


def test_wrong_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (("ucf101", "neither"), ("k600", "no list"), ("webvid", "no list")):
        assert main(["data", name, str(tmp_path)]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(VideoError, match="no such folder"):
        survey("ucf101", tmp_path / "none")
