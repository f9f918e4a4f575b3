"""Names, cache folder and checksums of feature networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.encoders.base import weights_checksum
from evaluation.encoders.load import load_features
from evatok.core.files import cache_dir


def test_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="no feature network 'c3d'; there are nano, games, i3d"):
        load_features("c3d")


def test_missing_weights_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    with pytest.raises(FileNotFoundError, match="run `python -m evaluation") as caught:
        load_features("i3d")
    assert str(tmp_path) in str(caught.value) and "sha256 2e8e4b79" in str(caught.value)


def test_checksum_sees_content_and_not_order() -> None:
    a, b = torch.arange(6.0), torch.zeros(2, 3, dtype=torch.float16)
    checksum = weights_checksum({"a": a, "b": b})
    assert checksum == weights_checksum({"b": b, "a": a.clone()})
    others = [
        {"a": a, "c": b},
        {"a": a + 1, "b": b},
        {"a": a.view(2, 3), "b": b},
        {"a": a, "b": b.to(torch.bfloat16)},
    ]
    assert checksum not in {weights_checksum(other) for other in others}
    assert weights_checksum({"a": torch.ones(2, 2).T, "n": torch.tensor(3)})
