"""The quantizer: nearest codes, gradients, losses, and a codebook that stays alive."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenizer.quantizer import VectorQuantizer


def quantizer(temperature: float = 0.01) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(16, 4, temperature)


def test_the_nearest_code_is_taken_whatever_the_length() -> None:
    vq = quantizer()
    z = torch.randn(50, 4)
    distance = torch.cdist(F.normalize(z, dim=-1), F.normalize(vq.codebook, dim=-1))
    out = vq(z * 7)
    assert torch.equal(out.ids, distance.argmin(-1))
    assert torch.equal(vq.nearest(out.unit), out.ids)
    torch.testing.assert_close(out.codes, vq.lookup(out.ids))
    torch.testing.assert_close(out.codes.norm(dim=-1), torch.ones(50))


def test_gradients_go_straight_through_and_to_their_own_side() -> None:
    vq = quantizer()
    z = torch.randn(8, 4, requires_grad=True)
    weight = torch.randn(8, 4)
    (vq(z).codes * weight).sum().backward()
    assert z.grad is not None and vq.codebook.grad is None
    unit_grad = torch.autograd.grad((F.normalize(z, dim=-1) * weight).sum(), z)[0]
    torch.testing.assert_close(z.grad, unit_grad)
    z.grad = None
    vq(z).codebook_loss.backward()
    assert z.grad is None and vq.codebook.grad is not None
    vq.codebook.grad = None
    vq(z).commitment_loss.backward()
    assert z.grad is not None and vq.codebook.grad is None


def test_entropy_is_low_for_sure_and_varied_choices() -> None:
    vq = quantizer()
    varied = vq(vq.codebook.detach().repeat(4, 1)).entropy_loss
    same = vq(vq.codebook.detach()[:1].repeat(64, 1)).entropy_loss
    assert varied < same - 1
    assert vq.eval()(torch.randn(8, 4)).entropy_loss == 0  # nothing to learn from
    assert quantizer(0.0)(torch.randn(8, 4)).entropy_loss == 0


def test_it_computes_in_float32_under_autocast() -> None:
    vq = quantizer()
    z = torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = vq(z)
    assert out.codes.dtype == torch.float32 and torch.equal(out.ids, vq(z).ids)


def test_dead_codes_come_back_on_inputs_of_the_batch() -> None:
    vq = quantizer()
    z = F.normalize(torch.randn(200, 4), dim=-1)
    for _ in range(300):
        vq.update_usage(torch.zeros(10, dtype=torch.int64), decay=0.9)
    before = vq.codebook.detach().clone()
    moved = vq.restart_dead_codes(z, 0.05, torch.Generator().manual_seed(0))
    assert moved == 15
    assert torch.equal(vq.codebook[0], before[0])
    for code in vq.codebook[1:]:
        assert (z == code).all(-1).any()
    assert vq.restart_dead_codes(z, 0.05, torch.Generator()) == 0  # they get their chance first
    assert len(vq(z).ids.unique()) > 5
