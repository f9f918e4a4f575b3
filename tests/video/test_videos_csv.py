"""A folder with a list: classes and splits are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from video.dataset import SourceConfig
from video.decoding.container import VideoError

LIST = "path,class,split\na/1.mp4,a,train\na/2.mp4,a,test\nb/3.mp4,b,train\n"


def source(folder: Path, text: str) -> SourceConfig:
    (folder / "list.csv").write_text(text)
    return SourceConfig(kind="folder", root=folder, videos=folder / "list.csv")


def test_classes_and_splits_are_kept(tmp_path: Path) -> None:
    own = source(tmp_path, LIST)
    train, test = own.items("train"), own.items("test")
    assert [(item.id, item.class_name) for item in train] == [("a/1.mp4", "a"), ("b/3.mp4", "b")]
    assert [item.id for item in test] == ["a/2.mp4"] and test[0].classes == ("a", "b")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a,test", "a,valid", "line 3: column split is 'valid': write train or test"),
        ("a,test", "a,train", "no row has the split test"),
        ("b/3", "a/1", "names a/1.mp4 a second time"),
        ("class", "kind", "class is missing"),
    ],
)
def test_wrong_lists(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(VideoError, match=said):
        source(tmp_path, LIST.replace(old, new)).items("test")


def test_a_list_is_told_only_where_it_is_set(tmp_path: Path) -> None:
    plain = SourceConfig(kind="folder", root=tmp_path)
    assert "videos" not in plain.model_dump(mode="json")
    assert "videos" in source(tmp_path, LIST).model_dump(mode="json")
    with pytest.raises(ValidationError, match="list of a folder"):
        SourceConfig(kind="ucf101", root=tmp_path, videos=tmp_path / "list.csv")
