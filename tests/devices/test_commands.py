"""Every command that runs a model takes a device, and says the same there as on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evatok.cli.app import app, main
from evatok.hub import load
from evatok.report.tables import ReportConfig, measure
from tests.devices.simulated import simulated

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command on a device into a folder of its own: its last line as JSON."""

    def command(device: str, *words: object) -> dict[str, Any]:
        text = [str(word).replace("OUT", str(tmp_path / device)) for word in words]
        capfd.readouterr()
        with simulated():
            assert main([*text, "--device", device, "--json"]) == 0
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    return command


def settings_file(path: Path, values: dict[str, Any]) -> Path:
    plain = json.loads(json.dumps(values, default=str))
    path.write_text(yaml.safe_dump(plain))
    return path


def alike(found: Any, expected: Any) -> None:
    """Equal but for rounding and names of folders."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            if key != "seconds":
                alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            alike(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    elif not isinstance(expected, str):
        assert found == expected


def test_reconstruct(run: Run, clip: Path, toy_dir: Path) -> None:
    for spec in ("router", "4,1,1,2"):
        words = ("reconstruct", clip, "-o", "OUT", "--model", toy_dir, "--assignment", spec)
        alike(run("sim", *words, "--features", "nano"), run("cpu", *words, "--features", "nano"))


def test_reconstruct_with_a_search(run: Run, clip: Path, toy_dir: Path) -> None:
    words = ("reconstruct", clip, "-o", "OUT", "--model", toy_dir, "--assignment", "threshold:20")
    alike(run("sim", *words), run("cpu", *words))


def test_reconstruct_refined(run: Run, clip: Path, toy_dir: Path) -> None:
    words = ("reconstruct", clip, "-o", "OUT", "--model", toy_dir, "--refine", "3")
    alike(run("sim", *words), run("cpu", *words))


@pytest.mark.parametrize("more", [(), ("--weights", "bfloat16"), ("--guidance", "1")])
def test_sample(run: Run, toy_dir: Path, more: tuple[str, ...]) -> None:
    words = ("sample", "-o", "OUT", "-n", 2, "--model", toy_dir, *more)
    found, expected = run("sim", *words), run("cpu", *words)
    assert found["num_samples"] == expected["num_samples"] == 4
    if "bfloat16" not in more:
        alike(found, expected)


def test_sample_texts(run: Run, text_dir: Path) -> None:
    words = ("sample", "-o", "OUT", "-n", 1, "--model", text_dir, "--text", "a dark clip of right")
    alike(run("sim", *words), run("cpu", *words))


def test_predict(run: Run, clip: Path, toy_dir: Path) -> None:
    words = ("predict", clip, "-o", "OUT", "-n", 2, "--model", toy_dir, "--frames", 20)
    alike(run("sim", *words), run("cpu", *words))


def test_fvd(run: Run, footage: Path, toy_dir: Path) -> None:
    words = (
        "fvd", footage / "Left", footage / "Right", "--size", 32, "--no-cache", "--model", toy_dir,
    )  # fmt: skip
    alike(run("sim", *words), run("cpu", *words))


@pytest.mark.parametrize("kind", ["rfvd", "gfvd", "fp"])
def test_evaluate(
    run: Run, kind: str, data: dict[str, Any], toy_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from evatok.measure.protocols import PROTOCOLS, DataSet

    protocol = PROTOCOLS[f"arcade-{kind}"].model_copy(update={"data": DataSet(name="squares")})
    monkeypatch.setitem(PROTOCOLS, f"arcade-{kind}", protocol)
    file = settings_file(tmp_path / "data.yaml", {"data": data})
    words = (
        "evaluate", f"arcade-{kind}", "--data", file, "--model", toy_dir, "--no-cache",
        "--count", 4,
    )  # fmt: skip
    alike(run("sim", *words), run("cpu", *words))


@pytest.fixture
def search_file(data: dict[str, Any], toy_dir: Path, tmp_path: Path) -> Path:
    values = {
        "stage": "search", "data": data, "model": toy_dir / "proxy", "clips": 2,
        "held_out_clips": 2, "batch_size": 2, "precision": "bf16",
    }  # fmt: skip
    return settings_file(tmp_path / "search.yaml", values)


def test_search_and_curves(run: Run, search_file: Path, toy_dir: Path, tmp_path: Path) -> None:
    from tokenizer.search.table import read_table

    for device in ("sim", "cpu"):
        run(device, "search", search_file, "--run-dir", "OUT/search")
    tables = [read_table(tmp_path / d / "search" / "train") for d in ("sim", "cpu")]
    assert tables[0].names == tables[1].names
    torch.testing.assert_close(
        tables[0].measures["mse"], tables[1].measures["mse"], rtol=0.05, atol=1e-3
    )
    words = (
        "curves", search_file, "-o", "OUT/curves", "--tables", tmp_path / "cpu" / "search",
        "--model", toy_dir,
    )  # fmt: skip
    alike(run("sim", *words), run("cpu", *words))


def test_tokens(run: Run, data: dict[str, Any], toy_dir: Path, tmp_path: Path) -> None:
    from generator.data.token_set import TokenSet

    values = {
        "stage": "tokens", "data": data, "tokenizer": toy_dir / "final",
        "router": toy_dir / "router", "windows": 1, "batch_size": 6, "frames": {"prefix": [4, 1]},
    }  # fmt: skip
    file = settings_file(tmp_path / "tokens.yaml", values)
    for device in ("sim", "cpu"):
        run(device, "tokens", file, "--run-dir", "OUT/tokens")
    sets = [TokenSet(tmp_path / d / "tokens" / "train") for d in ("sim", "cpu")]
    assert (sets[0].lengths() == sets[1].lengths()).all()
    metas = [(tmp_path / d / "tokens/train/tokens.json").read_text() for d in ("sim", "cpu")]
    assert metas[0] == metas[1]  # the device is no part of what was made
    for row in range(len(sets[0])):
        assert (sets[0].sequence(row) == sets[1].sequence(row)).all()


def test_train_takes_the_device(
    run: Run, tokenizer_settings: dict[str, Any], tmp_path: Path
) -> None:
    file = settings_file(tmp_path / "proxy.yaml", {"stage": "proxy", **tokenizer_settings})
    result = run("sim", "train", file, "train.steps=1", "--run-dir", "OUT/run")
    assert result["steps"] == 1
    saved = yaml.safe_load((tmp_path / "sim" / "run" / "config.yaml").read_text())
    assert saved["train"]["device"] == "sim"


def test_tables_of_demo_and_report(toy_dir: Path, data: Any) -> None:
    """What `demo` and the pipeline's report measure, without the search that curves show."""
    from video.dataset import DataConfig

    config = ReportConfig(clips=2, networks=("nano",), guidance=(2.0,))
    tables = []
    for device in ("sim", "cpu"):
        with simulated():
            models = load(toy_dir, device)
            tables.append(
                measure(
                    models, DataConfig.model_validate(data), None, Path(), 1.2, config,
                    lambda _: None,
                )
            )  # fmt: skip
    alike(*tables)


def test_every_command_with_a_model_has_the_option() -> None:
    """A new command with --model, or with settings that are run, must take a device too."""
    without = {"export-llama", "import-llama"}  # they move weights between files
    seen = set()
    for command in app.registered_commands:
        assert command.callback is not None
        names = command.callback.__annotations__
        runs = {"model", "config", "until"} & set(names)
        if runs and command.name not in without:
            assert "device" in names, command.name
            seen.add(command.name)
    assert seen == {
        "train", "search", "tokens", "curves", "pipeline", "reconstruct", "fvd", "evaluate",
        "sample", "predict", "demo", "encode", "decode", "compare", "statistics", "app",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cuda:7", "tpu", "sim:3"])
def test_a_device_that_is_not_here_is_one_line(
    name: str, clip: Path, toy_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["reconstruct", str(clip), "-o", str(tmp_path / "out"), "--model", str(toy_dir)]
    assert main([*words, "--device", name]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and f"device {name}" in error[0].replace("'", "")
    assert not (tmp_path / "out").exists()
