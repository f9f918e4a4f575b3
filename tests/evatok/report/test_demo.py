"""The demo with toy parts: a page whose every picture and video is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evatok.core.config import find_settings, load_config
from evatok.core.errors import EvatokError
from evatok.core.loading.records import RecordError
from evatok.generate.sample_set import MANIFEST
from evatok.report.demo import (
    PACKED,
    DemoConfig,
    refuse_others_samples,
    remove_samples,
    report_of,
    run_demo,
)
from video.lists import read_ucf101
from video.reading import read_frames


@pytest.mark.parametrize("name", ["games/demo", "nano/demo", "nano/demo-short"])
def test_shipped_settings_are_valid(name: str) -> None:
    config = load_config(DemoConfig, find_settings(name))
    assert all(source.optional for source in config.more_sources)


def test_page_is_complete(text_dir: Path, footage: Path, tmp_path: Path) -> None:
    settings = tmp_path / "demo.yaml"
    settings.write_text(
        f"""
games: [frogger, boxing]
clips_per_game: 1
more_sources: [{{kind: ucf101, root: {footage}}}]
more_videos: {footage / "Left"}
cache_dir: {tmp_path / "cache"}
reconstructions: 1
texts: [a dark clip of left, "right, bright"]
predictions: 2
scored_clips: 4
"""
    )
    out = tmp_path / "out"
    said: list[str] = []
    result = run_demo(out, str(text_dir), said.append, settings)
    page = (out / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r' src="([^"]+)"', page)
    # 3 reconstructions, 2 classes, 2 texts, 2 predictions of each of 2 sets, 3 plots
    assert len(sources) == 3 + 2 + 2 + 4 + 3 == len(set(sources))
    for source in sources:
        assert not source.startswith("/") and (out / source).is_file()
        if source.endswith(".mp4"):
            assert len(read_frames(out / source)) >= 16
    assert "FVD[nano]" in page or "fvd[nano]" in page
    assert json.loads((out / "demo.json").read_text()) == result
    assert {row["set"] for row in result["levels"]} == {"arcade", "squares"}
    assert result["clips"] == {"arcade": 4, "squares": 4}
    assert not list(out.rglob("*partial*"))


def made_set(folder: Path) -> Path:
    """A set of one sample, as `sample_set` leaves it, and a file that is none of it."""
    (folder / "chunks").mkdir(parents=True)
    (folder / "chunks" / "00000.json").write_text("[]")
    (folder / "cat-7-000.mp4").write_text("a clip")
    (folder / "notes.txt").write_text("mine")
    (folder / MANIFEST).write_text(json.dumps({"samples": [{"file": "cat-7-000.mp4"}]}))
    return folder


def test_samples_that_somebody_else_made_stay(text_dir: Path, tmp_path: Path) -> None:
    settings = tmp_path / "demo.yaml"
    settings.write_text("games: [frogger]\n")
    folder = made_set(tmp_path / "out" / "videos" / "samples")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(EvatokError, match="samples holds samples that no demo has made: move"):
        run_demo(tmp_path / "out", str(text_dir), lambda text: None, settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out" / "arcade").exists()  # told before anything is made


@pytest.mark.parametrize("mark", ["out/videos/samples/.demo", "out/demo.json"])
def test_samples_of_an_earlier_page_are_removed(tmp_path: Path, mark: str) -> None:
    """Pages of earlier versions have no mark among the samples, but a result."""
    folder = made_set(tmp_path / "out" / "videos" / "samples")
    (tmp_path / mark).write_text("")
    refuse_others_samples(folder, tmp_path / "out")
    remove_samples(folder)
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left - {".demo"} == {"notes.txt"}
    remove_samples(folder)  # nothing is there
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(RecordError, match=r"samples\.json should hold a JSON object"):
        remove_samples(folder)


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"tables": {"levels": 3}}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(RecordError, match=r"report\.json.*take it out"):
            report_of(tmp_path)


def test_packed_clips_are_there_with_their_licences() -> None:
    """Two videos of each of sixteen games, some hundred kB; nothing needs to be recorded."""
    items = read_ucf101(PACKED, "test")
    assert len(items) == 32 and len({item.class_name for item in items}) == 16
    for item in items[::8]:
        assert read_frames(item.path).shape == (32, 64, 64, 3)
    assert "CC BY 4.0" in (PACKED / "LICENCES.txt").read_text()
    assert sum(path.stat().st_size for path in PACKED.rglob("*.*")) < 600_000


def test_demo_on_packed_clips(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without games in the settings nothing is recorded."""
    monkeypatch.setattr("evatok.report.demo.recorder.record", None)
    settings = tmp_path / "demo.yaml"
    settings.write_text(
        f"cache_dir: {tmp_path / 'cache'}\nreconstructions: 1\npredictions: 1\nscored_clips: 4\n"
    )
    result = run_demo(tmp_path / "out", str(text_dir), lambda text: None, settings)
    assert result["clips"] == {"procgen": 4}
    folder = tmp_path / "out" / "videos" / "samples"
    assert (folder / ".demo").is_file()
    refuse_others_samples(folder, tmp_path / "other")  # also where the page was not finished
