"""The usual program beside ours: the same network, and what the benchmark tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import fvd
from evaluation.encoders.i3d import network as i3d


def test_the_plain_network_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers apart against layers folded, on weights at random."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, module in i3d.I3D().named_modules():
        if isinstance(module, i3d.Unit):
            shape = module.weight.shape
            weight = torch.randn(shape, generator=generator) / (shape[1] * shape[2] ** 3) ** 0.5
            weights[f"{name}.conv3d.weight"] = weight
            for leaf in ("bias", "running_mean"):
                weights[f"{name}.bn.{leaf}"] = torch.randn(shape[0], generator=generator) / 9
            weights[f"{name}.bn.running_var"] = torch.rand(shape[0], generator=generator) + 0.5
    weights["logits.conv3d.weight"] = torch.randn(400, 1024, 1, 1, 1, generator=generator) / 32
    weights["logits.conv3d.bias"] = torch.randn(400, generator=generator)
    monkeypatch.setattr(fvd, "read_weights", lambda: weights)
    clips = torch.rand(1, 3, 9, 224, 224, generator=generator) * 2 - 1
    with torch.no_grad():
        plain = fvd.plain_i3d()(clips)
    torch.testing.assert_close(plain, i3d.I3DFeatures(weights)(clips), atol=1e-4, rtol=1e-4)


def test_what_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fvd.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(fvd, "usual_distance", lambda x, y: float(((x[0] - y[0]) ** 2).sum()))
    monkeypatch.setattr(fvd, "peak", lambda: 1e10)
    result = fvd.measure("nano", 3)
    assert result["videos"] == 6 and result["ours"]["fvd"] > 0 < result["usual"]["fvd"]
    assert result["ratio"] > 0 < result["cpu_ratio"] and 0 < result["network_share"] <= 1
    made = sorted(tmp_path.rglob("*.mp4"))
    times = [path.stat().st_mtime_ns for path in made]
    fvd.make_videos(3)
    assert len(made) == 6 and [path.stat().st_mtime_ns for path in made] == times
