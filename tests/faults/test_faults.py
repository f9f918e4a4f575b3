"""The short form of `make faults`: the suite knows each outcome, and a few cases of every kind."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

CASES = 20  # one of every kind, in the order of `kinds.KINDS`


def test_every_outcome_is_told_from_the_others(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    command = [sys.executable, str(HERE / "endings.py"), str(tmp_path / "case")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_damage_is_a_function_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nearly always is damage."""
    monkeypatch.syspath_prepend(HERE)
    from mutations import mutate

    contents = {
        "a.json": b'{"a": [1, 2.5, {"b": "c"}]}',
        "a.csv": b"x,y\n1,2\n",
        "a.bin": b"\1" * 99,
    }
    changed = 0
    for name, data in contents.items():
        for seed in range(100):
            found = []
            for _ in range(2):
                (tmp_path / name).write_bytes(data)
                damage = mutate(tmp_path / name, random.Random(seed))
                found.append((damage, (tmp_path / name).read_bytes()))
            assert found[0] == found[1]
            changed += found[0][1] != data
    assert changed > 240


def test_a_damaged_file_of_every_kind(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case of every kind; `make faults N=10000` for more."""
    monkeypatch.syspath_prepend(HERE)
    from kinds import KINDS

    assert len(KINDS) == CASES
    words = ["--n", str(CASES), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, root / "tests" / "faults" / "fuzz.py", *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_damaged_token_files_by_the_dozen(root: Path) -> None:
    """`python tests/faults/token_files.py` for ten thousand."""
    done = subprocess.run(
        [sys.executable, root / "tests" / "faults" / "token_files.py", "--n", "40"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 40 |" in done.stdout
