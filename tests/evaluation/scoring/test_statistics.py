"""Mean and covariance in files: what is read, what is refused, and the distance they give."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evatok
from evaluation.metrics.frechet import (
    distance_between,
    frechet_distance,
    moments_of,
    moments_of_features,
)
from evaluation.scoring.records import read_records
from evaluation.scoring.statistics import is_statistics, read_statistics
from evatok.cli.app import main


def features(seed: int, count: int = 50, dim: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 3).astype(np.float32)


def sums(x: np.ndarray) -> dict[str, Any]:
    """What StyleGAN-V and cd-fvd keep of features."""
    x = x.astype(np.float64)
    kept = {"capture_all": False, "capture_mean_cov": True, "max_items": None, "all_features": []}
    kept |= {"num_items": len(x), "num_features": x.shape[1]}
    return kept | {"raw_mean": x.sum(0), "raw_cov": x.T @ x}


def save(path: Path, values: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{k: v for k, v in values.items() if v is not None})
    else:
        torch.save({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
                    for k, v in values.items()}, path)  # fmt: skip
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_same_distance_as_of_features(tmp_path: Path, suffix: str, biased: bool) -> None:
    """Sums, means with and without a divisor that is told, in either kind of file."""
    x, y = features(1), features(2, 70)
    expected = frechet_distance(x, y, biased)
    fake = moments_of_features(y, biased)
    x64 = x.astype(np.float64)
    for number, values in enumerate((
        sums(x),
        {"mu": x64.mean(0), "sigma": np.cov(x64.T, bias=True), "num_items": 50, "biased": 1},
        {"mean": x64.mean(0), "cov": np.cov(x64.T), "n": 50, "biased": 0},
        {"mu": x64.mean(0), "sigma": np.cov(x64.T, bias=biased)},
    )):  # fmt: skip
        path = save(tmp_path / f"{number}{suffix}", values)
        assert is_statistics(path)
        statistics = read_statistics(path)
        assert statistics.count == (None if number == 3 else 50) and len(statistics.data) == 64
        got = distance_between(statistics.moments(biased), fake)
        assert got == pytest.approx(expected, rel=1e-9)
        assert distance_between(fake, statistics.moments(biased)) == got


def test_singular_covariances() -> None:
    """Fewer clips than features, against themselves and against others."""
    x, y = features(1, 20, 64).astype(np.float64), features(2, 30, 64).astype(np.float64)
    first = moments_of(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T, bias=True)), 20)
    assert len(first.factor) == 19
    scale = float(first.factor.square().sum())
    assert distance_between(first, moments_of_features(x)) < 1e-6 * scale
    expected = frechet_distance(x, y)
    assert distance_between(first, moments_of_features(y)) == pytest.approx(expected, rel=1e-8)


def test_refusals(tmp_path: Path) -> None:
    x = features(1)
    good = {"mu": x.mean(0), "sigma": np.cov(x.T)}
    upper = np.triu(np.ones((8, 8)))
    cases = {
        "shape": ({"mu": x.mean(0)[:5], "sigma": np.cov(x.T)}, "do not belong together"),
        "skew": ({"mu": x.mean(0), "sigma": upper}, "not symmetric"),
        "nan": ({"mu": x.mean(0) * np.nan, "sigma": np.cov(x.T)}, "not finite"),
        "few": (good | {"num_items": 1}, "number of clips is"),
        "words": ({"mu": np.array(["a"]), "sigma": np.cov(x.T)}, "arrays of numbers"),
        "cut": (good | {"cut": "[1]"}, "cut is no JSON object"),
    }
    for name, (values, said) in cases.items():
        path = save(tmp_path / f"{name}.npz", values)
        with pytest.raises(ValueError, match=said) as caught:
            read_statistics(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no mean and covariance, or sums and their number"):
        read_statistics(save(tmp_path / "half.npz", {"mu": x.mean(0)}))
    wrong = save(tmp_path / "negative.npz", {"mu": x.mean(0), "sigma": -np.eye(8)})
    with pytest.raises(ValueError, match=r"negative\.npz: a covariance with the eigenvalue -1 "):
        read_statistics(wrong).moments(True)
    np.savez(tmp_path / "videos.npz", x=np.zeros((1, 4, 8, 8, 3), np.uint8))
    torch.save(torch.zeros(1, 3, 4, 8, 8), tmp_path / "videos.pt")
    (tmp_path / "junk.npz").write_bytes(b"PK no archive")
    (tmp_path / "junk.pt").write_bytes(pickle.dumps(print, protocol=2))
    for name in ("videos.npz", "videos.pt", "junk.npz", "junk.pt"):
        assert not is_statistics(tmp_path / name)


def test_a_pickle_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    """Nothing of it is run; the line in the message makes a file that is read."""
    path, mark = tmp_path / "ucf101.pkl", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    path.write_bytes(pickle.dumps(Evil()))
    assert is_statistics(path)
    with pytest.raises(ValueError, match="is a pickle, which may run anything") as caught:
        read_statistics(path)
    assert not mark.exists() and "\n" not in str(caught.value)
    x = features(1)
    path.write_bytes(pickle.dumps(sums(x)))
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    got = read_statistics(tmp_path / "ucf101.npz").moments(True)
    assert distance_between(got, moments_of_features(x)) == pytest.approx(0, abs=1e-7)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for number, side in enumerate(("real", "fake")):
        (tmp_path / side).mkdir()
        clips = rng.integers(0, 200 + 20 * number, (7 - number, 9, 16, 16, 3), np.uint8)
        np.savez(tmp_path / side / "clips.npz", x=clips)
    return [str(tmp_path / side) for side in ("real", "fake")]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--no-cache", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*words, "--no-cache"]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_the_commands(
    sets: list[str], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `evatok statistics` writes stands for the videos, on either side of `evatok fvd`."""
    file, record = tmp_path / f"real.{suffix}", tmp_path / "record.json"
    cut = ["--frames", "9", "--size", "16"]
    made = run(["statistics", sets[0], "-o", str(file), *cut], capsys)
    assert made["num_clips"] == 7 and made["network"] == "nano"
    for more in ([], ["--unbiased"]):
        plain = run(["fvd", *sets, *cut, *more], capsys)
        got = run(["fvd", str(file), sets[1], *cut, *more, "--record", str(record)], capsys)
        assert got["fvd[nano]"] == pytest.approx(plain["fvd[nano]"], rel=1e-6)
        for key in ("num_real", "num_fake", "data", "biased", "networks", "cut", "damaged_fake"):
            assert got[key] == plain[key]
        assert got["statistics"] == {"real": str(file)}
        swapped = run(["fvd", sets[1], str(file), *cut, *more], capsys)
        assert swapped["fvd[nano]"] == got["fvd[nano]"]
        (row,) = read_records(record)
        assert row.num_clips == 6 and row.data == plain["data"] and row.interval is None
    value = evatok.fvd(file, sets[1], num_frames=9, size=16)
    assert value == run(["fvd", str(file), sets[1], *cut], capsys)["fvd[nano]"]
    both = run(["fvd", str(file), str(file), *cut], capsys)
    assert both["fvd[nano]"] == pytest.approx(0, abs=1e-9) and both["num_fake"] == 7
    words = ["fvd", str(file), sets[1]]
    assert "is of clips with num_frames 9, not 16: give --frames 9" in refused(words, capsys)
    preset = [*words, *cut, "--preset", "larp-k600", "--count", "5"]  # of i3d; the file is of nano
    assert "with resize bytes, not float: give --resize bytes" in refused(preset, capsys)
    message = refused([*preset, "--resize", "bytes"], capsys)
    assert "with shrink None, not 64: give the --preset that it was made with" in message
    assert "no other metric than fvd" in refused([*words, *cut, "--metrics", "kvd"], capsys)
    assert "give one network" in refused([*words, *cut, "--features", "nano,nano"], capsys)


def test_statistics_of_others(
    sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They tell no network: it is asked for, and the number of its features must fit."""
    file = save(tmp_path / "other.npz", sums(features(1)))
    cut = ["--frames", "9", "--size", "16"]
    words = ["fvd", str(file), sets[1], *cut]
    assert "does not name its network: give --features" in refused(words, capsys)
    message = refused([*words, "--features", "nano"], capsys)
    assert "has 8 features, nano has" in message
    made = tmp_path / "real.npz"
    run(["statistics", sets[0], "-o", str(made), *cut], capsys)
    arrays = dict(np.load(made))
    assert {"num_items", "num_features", "raw_mean", "raw_cov", "mu", "sigma"} <= set(arrays)
    kept = save(tmp_path / "sums.npz", {k: arrays[k] for k in ("num_items", "raw_mean", "raw_cov")})
    expected = run(["fvd", str(made), sets[1], *cut], capsys)["fvd[nano]"]
    got = run(["fvd", str(kept), sets[1], *cut, "--features", "nano"], capsys)
    assert got["fvd[nano]"] == pytest.approx(expected, rel=1e-5)
    for changed, said in (
        ({"network": "i3d"}, "is of the network i3d, not nano: give --features i3d"),
        ({"checksum": "0" * 64}, "with other weights (sha256 00000000, not "),
    ):
        path = save(tmp_path / "changed.npz", arrays | changed)
        assert said in refused(["fvd", str(path), sets[1], *cut, "--features", "nano"], capsys)
    for output, said in (
        ("real.pkl", "written as .npz or .pt"),
        ("real/clips.npz", "over the input"),
    ):
        words = ["statistics", sets[0], "-o", str(tmp_path / output), *cut]
        assert said in refused(words, capsys)


def test_the_way_back_to_a_pickle(
    sets: list[str], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/evaluation.md make what StyleGAN-V and cd-fvd load."""
    words = ["statistics", sets[0], "-o", str(tmp_path / "real.npz")]
    run([*words, "--frames", "9", "--size", "16"], capsys)
    guide = (root / "docs" / "evaluation.md").read_text()
    (code,) = [part.split("```")[0] for part in guide.split("```python")[1:] if "pickle" in part]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    loaded = pickle.loads((tmp_path / "real.pkl").read_bytes())
    assert set(loaded) == set(sums(features(1))) and loaded["num_items"] == 7
    mean = loaded["raw_mean"] / loaded["num_items"]
    covariance = loaded["raw_cov"] / loaded["num_items"] - np.outer(mean, mean)
    statistics = read_statistics(tmp_path / "real.npz")
    assert np.allclose(mean, statistics.mean) and np.allclose(covariance, statistics.covariance)
