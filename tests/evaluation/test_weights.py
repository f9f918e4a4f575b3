"""The list of pretrained files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation import weights
from evaluation.perceptual import efficientnet
from evatok.cli.app import main


def test_missing_and_damaged_files_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    efficientnet.weights_path().write_bytes(b"half a file")
    rows = {row.name: row for row in weights.registry()}
    assert rows["I3D, Kinetics-400"].state == "missing"
    assert rows["EfficientNet-Lite0, ImageNet"].state == "damaged"
    assert rows["VGG16, ImageNet"].state == "missing"
    assert rows["LPIPS 0.1, linear weights for VGG16"].state == "verified"
    assert rows["VideoMAE, tiny"].state == "there, not pinned"

    assert main(["weights", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["weights"]
    assert [row["name"] for row in told] == list(rows)
    assert all(row["get"] and row["used_for"] for row in told)


def test_present_files_are_verified() -> None:
    assert weights._state(efficientnet.read_weights) == "verified"
