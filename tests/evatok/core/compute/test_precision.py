"""The faster float32 path is taken only where it is float32."""

from __future__ import annotations

import torch

from evatok.core.compute.precision import fast_float32_matmul, has_fast_float32


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
