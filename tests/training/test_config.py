"""Settings: what is refused, and that a refusal names everything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from training.config import Config, ConfigError, TrainConfig, load_config, read_yaml, save_config


class Part(Config):
    width: int = 4
    sizes: tuple[int, ...] = (1, 2)
    path: Path | None = None
    flag: bool = False


class Whole(Config):
    stage: Literal["toy"]
    train: TrainConfig
    part: Part = Part()
    items: tuple[Part, ...] = ()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


BASE = """
train: {steps: 1e3, batch_size: 8, optimizer: {lr: 1e-4, betas: [0.9, 0.99]}}
items: [{width: 3}, {width: 4}]
"""


def test_base_overrides_and_round_trip(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    path = write(tmp_path, "top.yaml", "base: base.yaml\nstage: toy\ntrain: {batch_size: 16}\n")
    overrides = ["train.optimizer.lr=3e-3", "items.1.flag=true", "part.path=a/b", "train.seed=5"]
    config = load_config(Whole, path, overrides)
    assert config.train.steps == 1000 and config.train.batch_size == 16
    assert config.train.optimizer.lr == 3e-3 and config.train.optimizer.betas == (0.9, 0.99)
    assert config.items == (Part(width=3), Part(width=4, flag=True))
    assert config.part.path == Path("a/b") and config.train.seed == 5
    save_config(config, tmp_path / "out" / "config.yaml")
    assert load_config(Whole, tmp_path / "out" / "config.yaml") == config
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.yaml"]


def test_every_mistake_is_named_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "train: {steps: many, batch_size: 8, optimizer: {lr: 0}}")
    path = write(tmp_path, "top.yaml", "base: base.yaml\npart: {widht: 3, flag: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, path, ["train.num_workers='1'"])
    message = str(caught.value)
    for expected in (
        "base.yaml: train.steps: ",
        "base.yaml: train.optimizer.lr: ",
        "top.yaml: part.widht: unknown key, did you mean 'width'?",
        "top.yaml: part.flag: 1 should be a bool",
        "top.yaml: stage: is missing",
        "override \"train.num_workers='1'\": train.num_workers: '1' should be a whole number",
    ):
        assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"width": True}, "width"),
        ({"width": "4"}, "width"),
        ({"width": 4.5}, "width"),
        ({"flag": 1}, "flag"),
        ({"flag": "yes"}, "flag"),
        ({"sizes": [1, "2"]}, "sizes"),
        ({"sizes": "12"}, "sizes"),
    ],
)
def test_no_surprising_conversion(values: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Part.model_validate(values)


def test_frozen_and_cross_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Part().width = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="batch_size 8 is not divisible by grad_accumulation 3"):
        TrainConfig(steps=1, batch_size=8, grad_accumulation=3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "given twice: a"),
        ("- 1", "should hold `key: value` lines"),
        ("base: 3", "`base` should be"),
        ("base: top.yaml", "leads back"),
        ("base: absent.yaml", "absent.yaml"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, match: str) -> None:
    path = write(tmp_path, "top.yaml", text)
    with pytest.raises((ConfigError, FileNotFoundError), match=match):
        read_yaml(path)


@pytest.mark.parametrize("override", ["train.steps", "=3", "a..b=3", "items.7.width=1", "a=[1"])
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "base.yaml", BASE)
    with pytest.raises(ConfigError, match="override"):
        read_yaml(path, [override])


def test_unknown_override_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "base.yaml", "stage: toy\n" + BASE)
    with pytest.raises(ConfigError, match=r"train\.stesp: unknown key, did you mean 'steps'"):
        load_config(Whole, path, ["train.stesp=3"])


def test_several_bases_are_merged_in_order(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a: {x: 1, y: 1}\nb: 1\n")
    (tmp_path / "two.yaml").write_text("a: {y: 2}\nc: 2\n")
    (tmp_path / "top.yaml").write_text("base: [one.yaml, two.yaml]\nc: 3\n")
    assert read_yaml(tmp_path / "top.yaml") == {"a": {"x": 1, "y": 2}, "b": 1, "c": 3}
    for wrong in ("[]", "[one.yaml, 3]", "{a: 1}"):
        (tmp_path / "wrong.yaml").write_text(f"base: {wrong}\n")
        with pytest.raises(ConfigError, match="name of a file, or a list"):
            read_yaml(tmp_path / "wrong.yaml")
