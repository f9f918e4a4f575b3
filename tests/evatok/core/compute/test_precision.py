"""The faster type is taken, and only where it loses nothing."""

from __future__ import annotations

import logging

import pytest
import torch

from evatok.core.compute import precision
from evatok.core.compute.precision import (
    bfloat16_autocast,
    fast_float32_matmul,
    has_fast_float32,
    multiplies_bfloat16,
)


def test_gate() -> None:
    assert has_fast_float32("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16\n")
    assert not has_fast_float32("vendor_id : AuthenticAMD\nflags : avx512f amx_bf16\n")
    assert not has_fast_float32("vendor_id : GenuineIntel\nflags : avx512f\n")


def test_products_stay_float32_and_the_setting_goes_back() -> None:
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(192, 512, generator=generator)
    b = torch.randn(512, 128, generator=generator)
    exact = a.double() @ b.double()
    with fast_float32_matmul(torch.device("cpu")):
        error = ((a @ b) - exact).norm() / exact.norm()
    assert error < 1e-6  # bf16 would be 2e-3
    assert torch.get_float32_matmul_precision() == before
    with fast_float32_matmul(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == before


def test_bfloat16_needs_instructions_that_multiply_it() -> None:
    assert multiplies_bfloat16({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False})
    assert multiplies_bfloat16({"amx_bf16": True})
    assert not multiplies_bfloat16({"avx512_f": True, "amx_bf16": False, "avx_ne_convert": True})


def test_without_them_autocast_is_off_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        precision._tell_of_float32.cache_clear()
        monkeypatch.setattr(precision, "has_bfloat16", lambda _, fast=fast: fast)
        for wanted in (True, False):
            with bfloat16_autocast("cpu", wanted):
                assert (x @ weight).dtype == (expected if wanted else torch.float32)
    assert caplog.text.count("computed in float32") == 1
