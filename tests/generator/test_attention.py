from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evatok.core.compute import optional_kernels as kernels
from generator.attention import (
    BACKENDS,
    Sequences,
    attend,
    default_backend,
    highest_matmul_precision,
)
from tests.attention_kernels import install
from tests.generator.sequences import packed


def one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The definition, in double precision, sequence by sequence, head by head."""
    out = []
    for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        heads = []
        for head in range(q.shape[1]):
            scores = a[:, head] @ b[:, head].T / math.sqrt(q.shape[2])
            future = torch.ones_like(scores).triu(1).bool()
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ c[:, head])
        out.append(torch.stack(heads, 1))
    return torch.cat(out)


def random_qkv(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, length, 2, 8, generator=generator, dtype=dtype).unbind()
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("lengths", [[1], [5, 1, 3], [7, 7, 2, 7], [3, 600, 40]])
@pytest.mark.parametrize("backend", ["naive", "loop", None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_backend_equals_the_definition(
    lengths: list[int], backend: str | None, dtype: torch.dtype, tolerance: float
) -> None:
    q, k, v = random_qkv(sum(lengths))
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    expected = one_by_one(q, k, v, lengths)
    gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v))

    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    result = attend(q, k, v, Sequences.from_cu_seqlens(packed(lengths)), backend)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    result = torch.autograd.grad((result * weight.to(dtype)).sum(), (q, k, v))
    for ours, theirs in zip(result, gradients, strict=True):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm() + 1e-6


@pytest.mark.filterwarnings("ignore")  # of the compiler and its generated code
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_flex_equals_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    """Compiled for two sizes; ragged, with sequences of one token."""
    for lengths in ([1], [5, 1, 3, 1], [7, 7, 2, 70, 42], [3, 130, 40]):
        q, k, v = (x.detach() for x in random_qkv(sum(lengths)))
        expected = one_by_one(q, k, v, lengths)
        sequences = Sequences.from_cu_seqlens(packed(lengths))
        result = attend(q.to(dtype), k.to(dtype), v.to(dtype), sequences, "flex")
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


def test_flex_refuses_to_train_on_a_cpu() -> None:
    q, k, v = random_qkv(4, torch.float32)
    with pytest.raises(ValueError, match="'flex' has no backward on a CPU: train with another"):
        attend(q, k, v, Sequences.from_cu_seqlens(packed([4])), "flex")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flex", "flash", "varlen", "xformers"])
def test_optional_backend_equals_naive(backend: str) -> None:
    if backend != "flex" and kernels.optional_function(backend) is None:
        pytest.skip(f"{backend} is not installed")
    lengths = [5, 130, 1, 64]
    sequences = Sequences.from_cu_seqlens(packed(lengths).cuda())
    qkv = torch.randn(3, sum(lengths), 2, 64, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.requires_grad_().unbind()
    expected = attend(q.float(), k.float(), v.float(), sequences, "naive")
    result = attend(q, k, v, sequences, backend)
    torch.testing.assert_close(result.float(), expected, atol=2e-2, rtol=2e-2)
    (theirs,) = torch.autograd.grad(expected.sum(), qkv, retain_graph=True)
    (ours,) = torch.autograd.grad(result.float().sum(), qkv)
    torch.testing.assert_close(ours.float(), theirs.float(), atol=5e-2, rtol=5e-2)


def test_adapters_hand_over_what_the_kernels_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {}

    def kernel(q: Tensor, *arguments: object, **options: object) -> Tensor:
        calls["arguments"], calls["options"] = arguments, options
        return q

    monkeypatch.setattr(kernels, "optional_function", lambda name: kernel)
    q, k, v = random_qkv(9, torch.float32)
    sequences = Sequences.from_cu_seqlens(packed([4, 5]))
    for name, option in (("flash", {"causal": True}), ("varlen", {"window_size": (-1, 0)})):
        assert attend(q, k, v, sequences, name) is q
        given = calls["arguments"]
        assert given[0] is k and given[1] is v
        assert given[2].tolist() == given[3].tolist() == [0, 4, 9]
        assert given[4:] == (5, 5)
        assert calls["options"] == option


def test_adapters_compute_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain functions of the libraries' documented signatures in their place."""
    install(monkeypatch)
    lengths = [4, 1, 9, 2]
    q, k, v = random_qkv(sum(lengths))
    expected = one_by_one(q, k, v, lengths)
    for name in ("flash", "varlen", "xformers"):
        result = attend(q, k, v, Sequences.from_cu_seqlens(packed(lengths)), name)
        torch.testing.assert_close(result, expected)


def test_choice_depends_on_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "optional_function", lambda name: {"varlen": min}.get(name))
    default_backend.cache_clear()
    assert default_backend("cpu", torch.bfloat16) == "loop"
    assert default_backend("cuda", torch.bfloat16) == "varlen"
    assert default_backend("cuda", torch.float32) == "loop"
    default_backend.cache_clear()


def test_unknown_and_missing_backends_are_named() -> None:
    q, k, v = random_qkv(3)
    sequences = Sequences.from_cu_seqlens(packed([3]))
    with pytest.raises(ValueError, match="'fast' is not one of"):
        attend(q, k, v, sequences, "fast")
    missing = [name for name in BACKENDS if name in ("flash", "xformers")]
    for name in missing:
        if kernels.optional_function(name) is None:
            with pytest.raises(ValueError, match=f"'{name}' is not installed"):
                attend(q, k, v, sequences, name)


def test_positions_restart_with_each_sequence() -> None:
    sequences = Sequences.from_cu_seqlens(packed([3, 1, 2]))
    assert sequences.positions().tolist() == [0, 1, 2, 0, 0, 1]
    assert sequences.max_seqlen == 3


def test_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), highest_matmul_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before
