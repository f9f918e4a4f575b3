"""Settings: what is refused, and that a refusal names everything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from evatok.core.config import Config, ConfigError, TrainConfig, load_config, read_yaml, save_config


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
        "top.yaml: part.widht: unknown key (did you mean 'width'?)",
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
        ("a: \0", "not YAML"),
        ("a: x\x07y", "not YAML"),
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
    with pytest.raises(ConfigError, match=r"train\.stesp: unknown key \(did you mean 'steps'"):
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


def bomb(opening: str, width: int = 9, levels: int = 12) -> str:
    """Aliases that name each other: 9^12 values in a few lines."""
    lines = [f"a0: &a0 {opening}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        value = f"[{inner}]" if opening.startswith("[") else f"{{<<: [{inner}]}}"
        lines.append(f"a{level}: &a{level} {value}")
    return "\n".join(lines)


ABSURD = {
    "bomb": bomb("[1, 2]"),
    "bomb in a known key": bomb("[1, 2]") + "\nitems: *a11\n",
    "bomb of merges": bomb("{x: 1, y: 2}"),
    "alias to itself": "items: &x [*x]\n",
    "deep lists": "items: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "train: " + "{a: " * 5000 + "1" + "}" * 5000,
    "not so deep": "train: " + "{a: " * 60 + "1" + "}" * 60,
    "deep dashes": "items:\n  " + "- " * 5000 + "1",
    "long": "items: [" + "1, " * 400_000 + "1]",
    "many": "items: [" + "1, " * 30_000 + "1]",
    "many keys": "\n".join(f"k{n}: 1" for n in range(9000)),
    "NUL": 'stage: "a\\0b"\n',
    "date": "stage: 2001-99-99\n",
    "long number": "stage: " + "9" * 5000,
    "tag": "stage: !!timestamp nonsense\n",
    "tag of a number": "stage: !!int ''\n",
    "key": "? [a, b]\n: 1\n",
    "betas": "train: {steps: 1, batch_size: 1, optimizer: {betas: [2, -1]}}\n",
    "seed": f"train: {{steps: 1, batch_size: 1, seed: {2**63}}}\n",
    "rows": "train: {steps: 1, batch_size: 1000000000}\n",
    "steps": f"train: {{steps: {2**63}, batch_size: 1}}\n",
    "infinite": "train: {steps: 1, batch_size: 1, optimizer: {lr: .inf}}\n",
    "no number": "train: {steps: 1, batch_size: 1, optimizer: {lr: .nan}}\n",
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_settings_are_told_in_a_line(name: str, tmp_path: Path) -> None:
    """Nothing is built that only aliases stand for: a bomb would take hours or all memory."""
    path = write(tmp_path, "top.yaml", ABSURD[name])
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 4000


def test_bases_that_fan_out(tmp_path: Path) -> None:
    for level in range(40):
        write(tmp_path, f"{level}.yaml", f"base: [{level + 1}.yaml, {level + 1}.yaml]")
    write(tmp_path, "40.yaml", BASE)
    with pytest.raises(ConfigError, match="more than 64 files"):
        read_yaml(tmp_path / "0.yaml")


def test_absurd_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "base.yaml", "stage: toy\n" + BASE)
    for text in ("train.steps=" + "[" * 5000, 'stage="a\\0b"', "stage=2001-99-99"):
        with pytest.raises(ConfigError, match="override"):
            read_yaml(path, [text])


def test_aliases_of_a_usual_size_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "top.yaml", "a: &a {x: 1, y: 2}\nc: [*a, *a]\n")
    one = {"x": 1, "y": 2}
    assert read_yaml(path) == {"a": one, "c": [one, one]}


def test_shipped_settings_are_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evatok.core.config import SHIPPED, find_settings

    monkeypatch.chdir(tmp_path)
    for name in ("nano/proxy", "nano/proxy.yaml", "configs/nano/proxy.yaml"):
        assert find_settings(name) == SHIPPED / "nano" / "proxy.yaml"
        assert read_yaml(name)["stage"] == "proxy"
    assert find_settings("webvid") == SHIPPED / "webvid"
    assert read_yaml("webvid/final-400k")  # its bases lie beside it
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "proxy").write_text("stage: mine")
    assert read_yaml("nano/proxy") == {"stage": "mine"}  # a path wins
    for name in ("nano/nothing", "../pyproject.toml"):
        with pytest.raises(FileNotFoundError, match="a shipped name such as nano/proxy"):
            read_yaml(name)
