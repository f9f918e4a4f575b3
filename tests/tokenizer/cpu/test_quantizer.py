"""The search of the codebook as compiled C code against `_search` of the quantizer in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer.cpu import quantizer as cpu_quantizer
from tokenizer.quantizer import VectorQuantizer, _search


def found(
    tokens: int, codes: int, width: int, scale: float, is_compiled: bool
) -> tuple[Tensor, ...]:
    """Ids, both sums, and the gradients of tokens and codebook; `scale` is that of the loss."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, width, generator=generator, requires_grad=True)
    codebook = torch.randn(codes, width, generator=generator, requires_grad=True)
    weight = torch.randn(codes, generator=generator)
    search = cpu_quantizer.search if is_compiled else None
    _, _, ids, of_codes, of_unit, entropies, use = _search(z, codebook, 0.01, search)
    assert entropies is not None and use is not None
    loss = scale * (of_codes + of_unit + 0.3 * entropies + (use * weight).sum())
    return ids, entropies, use, *torch.autograd.grad(loss, (z, codebook))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize(("tokens", "codes", "width"), [(40, 16, 4), (300, 64, 8), (128, 1024, 3)])
def test_it_is_the_search_of_pytorch(tokens: int, codes: int, width: int, scale: float) -> None:
    fast, slow = (found(tokens, codes, width, scale, is_compiled) for is_compiled in (True, False))
    assert torch.equal(fast[0], slow[0])
    for a, b in zip(fast[1:], slow[1:], strict=True):
        assert (a - b).norm() <= 3e-4 * b.norm()


def test_the_first_of_equal_codes_is_taken() -> None:
    unit = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    book = torch.nn.functional.normalize(torch.randn(32, 8), dim=-1).repeat(2, 1)
    ids, _, _ = cpu_quantizer.search(unit, book, 0.01)
    assert ids.max() < 32


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = found(1000, 64, 8, 1.0, True)
        torch.set_num_threads(3)
        three = found(1000, 64, 8, 1.0, True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_quantizer_in_compiled_training_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], cpu_quantizer.search
    monkeypatch.setattr(cpu_quantizer, "search", lambda *a: calls.append(a) or whole(*a))
    quantizer, z = VectorQuantizer(32, 4, 0.01), torch.randn(9, 4)
    plain = quantizer(z)
    assert not calls
    quantizer.is_compiled = True
    compiled = quantizer(z)
    assert len(calls) == 1
    torch.testing.assert_close(compiled.entropy_loss, plain.entropy_loss)
    assert torch.equal(compiled.ids, plain.ids)
    quantizer.eval()(z)
    assert len(calls) == 1
