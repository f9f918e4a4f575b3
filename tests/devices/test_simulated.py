"""The simulated device refuses what a GPU refuses, and counts what a GPU would wait for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evatok.core.compute.devices import device_of, float64_device, resolve_device
from tests.devices.simulated import READS, simulated


def test_two_devices_do_not_mix() -> None:
    with simulated() as device:
        here, there = torch.ones(3), torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="two devices"):
            _ = here + there
        with pytest.raises(RuntimeError, match="two devices"):
            nn.Linear(3, 2).to(device)(here)
        with pytest.raises(RuntimeError, match="indices should be"):
            _ = here[torch.zeros(1, dtype=torch.int64, device=device)]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=torch.Generator())


def test_float64_is_refused_where_asked_for() -> None:
    with simulated(has_float64=False) as device:
        there = torch.ones(3, device=device)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="float64"):
            torch.ones(3, dtype=torch.float64).to(device)
        assert there.to(float64_device(device)).double().sum() == 3
    with simulated() as device:
        assert float64_device(device) == device
        assert torch.ones(3, device=device).double().sum().cpu() == 3


def test_reads_are_counted() -> None:
    with simulated() as device:
        x = torch.arange(4, device=device)
        y = x * 2 + 1  # numbers of Python go along without a wait
        assert not READS
        assert int(y[0]) == 1 and bool((y > 0).all()) and y.tolist() == [1, 3, 5, 7]
        assert len(READS) == 3
        assert torch.equal(y.cpu(), torch.tensor([1, 3, 5, 7])) and len(READS) == 4


def test_training_works_there() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(4, 1), nn.Linear(4, 1)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(8, 4)
    torch.optim.SGD(twin.parameters(), 0.1)
    with simulated() as device:
        model.to(device)
        assert device_of(model) == device
        model(x.to(device)).square().mean().backward()
        gradient = next(model.parameters()).grad
        assert gradient is not None and gradient.device == device
        found = gradient.cpu()
    twin(x).square().mean().backward()
    expected = next(twin.parameters()).grad
    assert expected is not None and torch.equal(found, expected)


def test_autocast_casts_as_a_gpu_does() -> None:
    with simulated() as device:
        layer, x = nn.Linear(3, 2).to(device), torch.ones(1, 3, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            out = layer(x)
            assert out.dtype == torch.bfloat16 and out.softmax(-1).dtype == torch.float32
            with torch.autocast(device.type, enabled=False):
                assert layer(x).dtype == torch.float32
        out.float().sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_resolve_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("sim").index == 0  # any kind that PyTorch knows
    with pytest.raises(ValueError, match="device sim:1: PyTorch sees 1 sim devices"):
        resolve_device("sim:1")
    for name in ("gpu", "cuda:x", "meta", ""):
        with pytest.raises(ValueError, match="give auto, cpu, cuda, cuda:1"):
            resolve_device(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="several processes cannot share one"):
        resolve_device("sim:0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    assert resolve_device("cuda") == torch.device("cuda:1")


def test_auto_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
