"""Lists, the clip cache and the stateless sampler."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import video.cache
from video.cache import ClipCache
from video.dataset import ClipSampler, DataConfig, SourceConfig
from video.decoding.container import VideoError
from video.lists import read_folder, read_kinetics_csv, read_pictures, read_ucf101
from video.writing import write_video


def picture(value: int, frames: int) -> torch.Tensor:
    ramp = torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1)
    return (ramp + value).expand(frames, 24, 32, 3).contiguous()


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Three classes of UCF-101's kind, 4 + 2 videos each, of unequal lengths."""
    root = tmp_path / "ucf"
    train, test = [], []
    for number, name in enumerate(("Surfing", "Archery", "HorseRace")):
        for clip in range(6):
            entry = f"{name}/v_{name}_g{clip + 1:02d}_c01.avi"
            write_video(root / entry, picture(40 * number + 5 * clip, 5 + 4 * clip), crf=1)
            (test if clip < 2 else train).append(entry)
    (root / "classInd.txt").write_text("1 Archery\n2 Biking\n3 HorseRace\n4 Surfing\n")
    numbers = {"Archery": 1, "HorseRace": 3, "Surfing": 4}
    lines = [f"{entry} {numbers[entry.split('/')[0]]}" for entry in train]
    (root / "trainlist01.txt").write_text("\n".join(lines) + "\n")
    (root / "testlist01.txt").write_text("\n".join(test) + "\n")
    return root


@pytest.fixture
def config(ucf: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    def make(**changes: object) -> DataConfig:
        source = SourceConfig(kind="ucf101", root=ucf)
        settings: dict[str, object] = {
            "sources": (source,),
            "num_frames": 8,
            "size": 16,
            "cache_dir": tmp_path / "cache",
        }
        return DataConfig.model_validate(settings | changes)

    return make


def test_ucf101_lists_of_a_subset(ucf: Path) -> None:
    train, test = read_ucf101(ucf, "train"), read_ucf101(ucf, "test")
    assert len(train) == 12 and len(test) == 6
    assert {(i.label, i.class_name) for i in train + test} == {
        (0, "Archery"),
        (1, "HorseRace"),
        (2, "Surfing"),
    }
    (ucf / "ucfTrainTestlist").mkdir()
    for path in ucf.glob("*.txt"):
        path.rename(ucf / "ucfTrainTestlist" / path.name)
    assert read_ucf101(ucf, "train") == train
    with pytest.raises(VideoError, match=r"no classInd\.txt"):
        read_ucf101(ucf / "Surfing")


def test_kinetics_lists(tmp_path: Path) -> None:
    larp = tmp_path / "larp.csv"
    larp.write_text("id,path,action,label\n1,val/abc_000001_000011.mp4,archery,3\n")
    item = read_kinetics_csv(larp, tmp_path)[0]
    assert item.path == tmp_path / "val/abc_000001_000011.mp4" and item.class_name == "archery"
    official = tmp_path / "official.csv"
    official.write_text("label,youtube_id,time_start,time_end,split\nzumba,x-y_z,7,17,val\n")
    assert read_kinetics_csv(official, tmp_path)[0].path.name == "x-y_z_000007_000017.mp4"
    official.write_text("a,b\n1,2\n")
    with pytest.raises(VideoError, match="are neither"):
        read_kinetics_csv(official, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,path,action,label\n1,a.mp4,,0\n", "line 2: column action is empty"),
        ("id,path,action,label\n1,a.mp4,x,0\n\n2,,x,0\n", "line 4: column path is empty"),
        ("id,path,action,label\n1,a.mp4,x,one\n", "column label is no whole number: 'one'"),
        ("id,path,action,label\n1,a.mp4,x\n", "line 2: 3 cells, but the first row names 4"),
        ("id,path,action,label\n1,a.mp4,x,0\n2,b.mp4,y,0\n", "line 3: column label 0 is 'y'"),
        ("id,path,action,label\n1,a.mp4,x,0\n2,b.mp4,x,1\n", "line 3: column label of 'x' is 1"),
        ("id,path,action,label\n1,a.mp4,x,99999999\n", "column label 99999999 is beyond"),
        ("label,youtube_id,time_start,time_end\nx,a,b,3\n", "column time_start is no time"),
        ("label,youtube_id,time_start,time_end\nx,a,nan,3\n", "column time_start is no time"),
        ("label,youtube_id,time_start,time_end\nx,,1,3\n", "column youtube_id is empty"),
        ('id,path,action,label\n1,a.mp4,"x,0\n', "line 2: unexpected end of data"),
        ("id,path,action,label\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_cells_that_cannot_be_read_are_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(VideoError, match=rf"list\.csv.*{re.escape(told)}"):
        read_kinetics_csv(path, tmp_path)


def test_lists_with_a_mark_and_line_breaks(assets: Path, tmp_path: Path) -> None:
    (item,) = read_kinetics_csv(assets / "odd" / "k600_bom.csv", tmp_path)
    assert item.class_name and item.path.suffix == ".mp4"
    (tmp_path / "a.csv").write_bytes(b'id,path,action,label\r\n1,a.mp4,"high\njump",0\r\n')
    assert read_kinetics_csv(tmp_path / "a.csv", tmp_path)[0].class_name == "high\njump"


def test_classes_belong_to_the_data_set(tmp_path: Path) -> None:
    """A list that lacks classes counts as the others do, with labels in it and without."""
    head = "id,path,action,label\n"
    (tmp_path / "train.csv").write_text(head + "1,a.mp4,run,0\n2,b.mp4,jump,1\n3,c.mp4,swim,3\n")
    (tmp_path / "val.csv").write_text(head + "1,d.mp4,swim,3\n")
    (alone,) = read_kinetics_csv(tmp_path / "val.csv", tmp_path)
    assert alone.label == 3 and len(alone.classes) == 4
    for name in ("a", "b", "c", "d"):
        write_video(tmp_path / f"{name}.mp4", picture(9, 8))
    source = SourceConfig(
        kind="kinetics",
        root=tmp_path,
        train_csv=tmp_path / "train.csv",
        test_csv=tmp_path / "val.csv",
    )
    for how in ("decoded", "files"):
        config = DataConfig(
            sources=(source,), num_frames=8, size=16, cache_dir=tmp_path / "cache", read=how
        )
        train, test = (ClipSampler(config, split) for split in ("train", "test"))
        assert train.class_names == test.class_names == ["run", "jump", "label 2", "swim"]
        assert [test.label(w) for w in test.eval_clips()] == [3]
    head = "label,youtube_id,time_start,time_end\n"
    (tmp_path / "train.csv").write_text(head + "run,a,1,2\njump,b,1,2\n")
    (tmp_path / "val.csv").write_text(head + "run,c,1,2\n")
    (item,) = source.items("test")
    assert item.label == 1 and item.classes == ("jump", "run")


def test_a_class_without_test_videos_keeps_its_label(
    ucf: Path, config: Callable[..., DataConfig]
) -> None:
    lines = (ucf / "testlist01.txt").read_text().splitlines()
    (ucf / "testlist01.txt").write_text("\n".join(x for x in lines if "HorseRace" not in x))
    test = ClipSampler(config(), "test")
    assert test.class_names == ["Archery", "HorseRace", "Surfing"]
    assert {test.label(w) for w in test.eval_clips()} == {0, 2}


def test_one_damaged_file_does_not_stop_a_small_set(
    ucf: Path, config: Callable[..., DataConfig]
) -> None:
    next(ucf.glob("Archery/*_g01_*.avi")).write_bytes(b"no video")
    test = ClipSampler(config(), "test")  # one of six, more than max_damaged 0.05
    assert test.num_videos == 5 and len(test.caches[0].damaged) == 1
    with pytest.raises(VideoError, match="1 of 6 videos are damaged or missing"):
        ClipSampler(config(max_damaged=0.0, size=8), "test")


def test_cached_clips_are_the_decoded_ones(
    ucf: Path, config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    items = read_ucf101(ucf, "train")
    cache = ClipCache.build(items, 16, tmp_path / "cache")
    assert cache.lengths.tolist() == [13, 17, 21, 25] * 3
    clip = cache.clip(0, 9, 8)  # 13 frames: 4 are left, the last is repeated
    assert clip.shape == (8, 16, 16, 3)
    brightness = clip.float().mean((1, 2, 3))
    assert brightness.argmax() >= 3 and (brightness[3:] == brightness[3]).all()
    stamp = (cache.folder / "frames.u8").stat().st_mtime_ns
    again = ClipCache.build(items, 16, tmp_path / "cache", workers=2)
    assert (again.folder / "frames.u8").stat().st_mtime_ns == stamp  # reused
    other = ClipCache.build(items, 16, tmp_path / "other", workers=2)
    assert (other.folder / "frames.u8").read_bytes() == (again.folder / "frames.u8").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "change",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        {"version": 2},
        {"size": 0},
        {"size": "16"},
        {"lengths": [1]},
        {"lengths": [-4] * 12},
        {"lengths": [10**30] * 12},
        {"labels": None},
        {"ids": 3},
    ],
)
def test_a_damaged_cache_is_named(ucf: Path, change: object, tmp_path: Path) -> None:
    items = read_ucf101(ucf, "train")
    index = ClipCache.build(items, 16, tmp_path / "cache").folder / "index.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(index.read_text()) | change).encode()
    assert isinstance(change, bytes)
    index.write_bytes(change)
    with pytest.raises(VideoError, match="remove"):
        ClipCache.build(items, 16, tmp_path / "cache")


def test_a_cache_without_its_frames_is_named(ucf: Path, tmp_path: Path) -> None:
    items = read_ucf101(ucf, "train")
    (ClipCache.build(items, 16, tmp_path / "cache").folder / "frames.u8").unlink()
    with pytest.raises(VideoError, match=r"frames\.u8 has the wrong size; remove"):
        ClipCache.build(items, 16, tmp_path / "cache")


def test_damaged_files_are_named_counted_and_limited(
    ucf: Path, config: Callable[..., DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ucf / "Archery" / "v_Archery_g04_c01.avi"
    broken.write_text("not a video")
    (ucf / "Surfing" / "v_Surfing_g05_c01.avi").unlink()
    with caplog.at_level(logging.WARNING):
        sampler = ClipSampler(config(max_damaged=0.2), "train")
    assert sampler.num_videos == 10 and "v_Archery_g04_c01.avi" in caplog.text
    assert "2 of 12 videos are damaged" in caplog.text
    assert sampler.class_names == ["Archery", "HorseRace", "Surfing"]
    with pytest.raises(VideoError, match="2 of 12 videos are damaged or missing"):
        ClipSampler(config(max_damaged=0.1, cache_dir=tmp_path / "strict"), "train")
    assert not list((tmp_path / "strict").iterdir())


def test_an_epoch_visits_every_video_once(config: Callable[..., DataConfig]) -> None:
    sampler = ClipSampler(config(), "train")
    for epoch in range(3):
        windows = [w for step in range(3) for w in sampler.batch(3 * epoch + step, 4, 7)[2]]
        assert sorted(w.video for w in windows) == list(range(12))
        for window in windows:
            assert 0 <= window.start <= sampler.caches[0].lengths[window.video] - 8


def test_batches_are_functions_of_their_arguments(config: Callable[..., DataConfig]) -> None:
    changes = {"flip": True, "color_permute": True, "zoom": 1.5}
    sampler, twin = (ClipSampler(config(**changes), "train") for _ in range(2))
    clips, labels, windows = sampler.batch(5, 6, seed=1)
    assert clips.shape == (6, 3, 8, 16, 16) and -1 <= float(clips.min()) <= float(clips.max()) <= 1
    twin.batch(0, 6, seed=1)
    assert torch.equal(twin.batch(5, 6, seed=1)[0], clips)
    assert not torch.equal(sampler.batch(5, 6, seed=2)[0], clips)
    parts = [sampler.batch(5, 6, 1, rank, 2) for rank in range(2)]
    for rank, (part, part_labels, part_windows) in enumerate(parts):
        assert torch.equal(part, clips[rank::2]) and torch.equal(part_labels, labels[rank::2])
        assert part_windows == windows[rank::2]


@pytest.mark.parametrize("setting", [{"flip": True}, {"color_permute": True}, {"zoom": 2.0}])
def test_every_augmentation_changes_clips_alike_in_all_frames(
    tmp_path: Path, setting: dict[str, object]
) -> None:
    folder = tmp_path / "one"
    still = torch.randint(0, 256, (1, 24, 24, 3), dtype=torch.uint8).expand(16, -1, -1, -1)
    write_video(folder / "a.mp4", still.contiguous(), crf=1)
    base: dict[str, object] = {
        "sources": (SourceConfig(kind="folder", root=folder),),
        "num_frames": 8,
        "size": 24,
        "cache_dir": tmp_path / "cache",
    }
    plain = ClipSampler(DataConfig.model_validate(base), "train")
    changed = ClipSampler(DataConfig.model_validate(base | setting), "train")
    differs = 0
    for step in range(8):
        clip = changed.batch(step, 1, 0)[0][0]
        assert (clip - clip[:, :1]).abs().mean() < 0.05  # still a still picture
        differs += not torch.equal(clip, plain.batch(step, 1, 0)[0][0])
    assert differs >= 2


def test_sources_are_mixed_by_weight(
    ucf: Path, config: Callable[..., DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "few" / "a.mp4", picture(9, 20), crf=1)
    write_video(tmp_path / "few" / "b.mp4", picture(99, 20), crf=1)
    sources = (
        SourceConfig(kind="ucf101", root=ucf, weight=3),
        SourceConfig(kind="folder", root=tmp_path / "few", weight=1),
        SourceConfig(kind="ucf101", root=tmp_path / "absent", optional=True),
    )
    with caplog.at_level(logging.WARNING):
        sampler = ClipSampler(config(sources=sources), "train")
    assert "absent is not here" in caplog.text
    windows = [w for step in range(8) for w in sampler.batch(step, 4, 0)[2]]  # two epochs
    assert sum(w.source == 0 for w in windows) == 24
    assert sorted(w.video for w in windows if w.source == 0) == sorted(list(range(12)) * 2)
    assert sorted(w.video for w in windows if w.source == 1) == [0] * 4 + [1] * 4
    assert {sampler.label(w) for w in windows} == {0, 1, 2, -1}
    required = (SourceConfig(kind="ucf101", root=tmp_path / "absent"),)
    with pytest.raises(VideoError, match=r"no classInd\.txt"):
        ClipSampler(config(sources=required), "train")


def test_evaluation_clips_are_fixed(config: Callable[..., DataConfig]) -> None:
    sampler = ClipSampler(config(), "train")
    assert [w.start for w in sampler.eval_clips(window="all")] == [0, 0, 8, 0, 8, 0, 8, 16] * 3
    drawn = sampler.eval_clips(5, window="all")
    assert drawn == sampler.eval_clips(5, window="all") and len(set(drawn)) == 5
    clips, labels = sampler.load(drawn)
    assert clips.shape == (5, 3, 8, 16, 16) and labels.tolist() == [sampler.label(w) for w in drawn]
    assert sampler.name(drawn[0]).endswith(f"#{drawn[0].start}")
    two = sampler.eval_clips(window=2)
    assert two == sampler.eval_clips(window=2) and len(two) == 7 * 3


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(VideoError, match="no videos"):
        read_folder(tmp_path)
    write_video(tmp_path / "b" / "x.mp4", picture(0, 3))
    write_video(tmp_path / "a.gif", picture(0, 3))
    assert [item.id for item in read_folder(tmp_path)] == ["a.gif", "b/x.mp4"]


def test_files_and_frames_decoded_ahead_give_the_same_clips(
    ucf: Path, config: Callable[..., DataConfig]
) -> None:
    ahead, drawn = (ClipSampler(config(read=how), "train") for how in ("decoded", "files"))
    for step in range(3):
        a, b = (sampler.batch(step, 4, 7) for sampler in (ahead, drawn))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
    assert not list(drawn.caches[0].folder.glob("*.u8"))


def test_a_file_that_breaks_after_it_was_counted_is_named(
    ucf: Path, config: Callable[..., DataConfig]
) -> None:
    sampler = ClipSampler(config(read="files"), "train")
    for path in ucf.rglob("*.avi"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"v_.*\.avi"):
        sampler.batch(0, 4, 7)


def test_threads_change_no_clip(config: Callable[..., DataConfig]) -> None:
    """For sets that are decoded when a clip is drawn."""
    changes = {"flip": True, "zoom": 1.5, "read": "files"}
    one, four = (ClipSampler(config(workers=n, **changes), "train") for n in (1, 4))
    for step in range(2):
        assert torch.equal(one.batch(step, 6, 3)[0], four.batch(step, 6, 3)[0])
    windows = one.eval_clips()
    assert torch.equal(one.load(windows)[0], four.load(windows)[0])


def test_a_cache_is_built_once(ucf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever comes first; the others wait and find it."""
    items, decoded = read_ucf101(ucf, "train"), []
    real = video.cache.read_frames

    def slow(path: Path, *rest: Any) -> torch.Tensor:
        decoded.append(path)
        time.sleep(0.02)
        return real(path, *rest)

    monkeypatch.setattr("video.cache.read_frames", slow)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(ClipCache.build, items, 16, tmp_path / "cache") for _ in range(3)]
        folders = {job.result().folder for job in jobs}
    assert len(decoded) == len(items) and len(folders) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folders.pop().name]


def test_pictures_are_videos_of_one_frame(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1)):
        for number, name in enumerate(("cat", "ant")):
            for place in range(count):
                path = tmp_path / "set" / part / name / f"{place}.{'JPEG' if number else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = (200, 40, 20 * place) if number else (40, 200, 20 * place)
                Image.new("RGB", (24, 16), colour).save(path)
    (tmp_path / "set" / "train" / "cat" / "notes.txt").write_text("no picture")
    source = {"kind": "images", "root": tmp_path / "set"}
    settings = {"sources": [source], "num_frames": 1, "size": 16, "cache_dir": tmp_path / "cache"}
    sampler = ClipSampler(DataConfig.model_validate(settings), "train")
    assert sampler.num_videos == 6 and sampler.class_names == ["ant", "cat"]
    clips, labels = sampler.load(sampler.eval_clips())
    assert clips.shape == (6, 3, 1, 16, 16) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert bool((clips[:3, 0].mean((1, 2, 3)) > clips[:3, 1].mean((1, 2, 3))).all())
    assert len(read_pictures(tmp_path / "set", "test")) == 2
    (flat,) = read_pictures(tmp_path / "set" / "val" / "ant", "train")
    assert (flat.label, flat.id) == (-1, "0.JPEG")
    for root, words in ((tmp_path / "none", "no such folder"), (tmp_path / "cache", "no pictures")):
        with pytest.raises(VideoError, match=words):
            read_pictures(root, "train")
