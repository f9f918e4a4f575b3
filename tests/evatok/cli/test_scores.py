"""Options of `evatok fvd` and what they decide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evatok.cli.app import main


def test_unbiased_holds_beside_a_preset(
    toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        np.savez(tmp_path / side, x=rng.integers(0, 255, (3, 16, 16, 16, 3), np.uint8))
    sides = [str(tmp_path / f"{side}.npz") for side in ("a", "b")]
    words = ["fvd", *sides, "--model", str(toy_dir), "--features", "nano", "--no-cache"]
    words += ["--preset", "larp-ucf", "--count", "3", "--size", "16", "--json"]
    for more, biased in (([], True), (["--unbiased"], False)):
        assert main([*words, *more]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["biased"] is biased and result["cut"]["resize"] == "float"
    assert main([*words, "--resize", "bytes"]) == 0
    assert "resize" not in json.loads(capsys.readouterr().out.splitlines()[-1])["cut"]
    assert main([*words, "--resize", "round"]) == 2
    assert "resize 'round' is none of bytes, float" in capsys.readouterr().err
