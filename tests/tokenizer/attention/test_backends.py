"""Every backend of the tokenizer's attention against the naive one, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evatok.core.compute import optional_kernels as kernels
from tests.attention_kernels import install
from tests.tokenizer.conftest import toy
from tokenizer.attention.backends import default_backend
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.router import Router, RouterConfig

KINDS = ("1d-1d", "1d-3d", "3d-1d", "3d-3d")
CELLS = 4


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def run(
    groups: ClipGroups,
    kind: str,
    backend: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Output and gradients of one attention on random rows."""
    rows = {"1d": groups.num_rows, "3d": groups.counts.numel() * CELLS}
    queries, keys = (rows[side] for side in kind.split("-"))
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(n, 2, 16, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for n in (queries, keys, keys)
    ]
    weight = torch.randn(queries, 2, 16, generator=generator, dtype=torch.float64).to(device)
    q, k, v = inputs
    out = groups.attend(q, k, v, CELLS, kind, backend)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["groups", "padded", "flash", "varlen", "xformers"])
def test_backend_equals_naive(assignment: Tensor, kind: str, backend: str) -> None:
    for chosen in (assignment, assignment[:1], assignment[:, :1]):
        groups = ClipGroups.from_assignment(chosen)
        pairs = zip(run(groups, kind, backend), run(groups, kind, "naive"), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the compiler and its generated code
def test_flex_equals_naive(assignment: Tensor) -> None:
    groups = ClipGroups.from_assignment(assignment)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(assignment) * 3 * CELLS, 2, 16, generator=generator)
    k, v = torch.randn(2, groups.num_rows, 2, 16, generator=generator).unbind()
    results = [groups.attend(q, k, v, CELLS, "3d-1d", name) for name in ("flex", "naive")]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_sequences_of_a_worked_example() -> None:
    """Two clips of two blocks with 1, 2 and 2, 1 tokens; the second block sees both."""
    groups = ClipGroups.from_assignment(torch.tensor([[1, 2], [2, 1]]))
    sequences = groups.sequences(CELLS, "3d-1d")
    assert sequences is groups.sequences(CELLS, "3d-1d")  # for all layers
    assert sequences.bounds[0].tolist() == [0, 4, 8, 12, 16]
    assert sequences.bounds[1].tolist() == [0, 1, 4, 6, 9]
    assert sequences.key_rows.tolist() == [0, 0, 1, 2, 3, 4, 3, 4, 5]
    assert sequences.longest == (4, 3)


def test_the_choice_depends_on_device_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    default_backend.cache_clear()
    monkeypatch.setattr(kernels, "optional_function", lambda name: {"varlen": min}.get(name))
    assert default_backend("cpu", torch.bfloat16) == "groups"
    assert default_backend("cuda", torch.bfloat16) == "varlen"
    assert default_backend("cuda", torch.float32) == "padded"
    assert default_backend("mps", torch.float32) == "padded"
    default_backend.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, backend in (((7, 0), "padded"), ((8, 0), "varlen")):  # a V100, an A100
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert default_backend("cuda", torch.bfloat16) == backend
        default_backend.cache_clear()


def test_an_unknown_or_missing_backend_is_named(
    assignment: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'best' is not one of"):
        run(ClipGroups.from_assignment(assignment), "1d-1d", "best")
    monkeypatch.setattr(kernels, "optional_function", lambda name: None)
    with pytest.raises(ValueError, match="'flash' is not installed"):
        run(ClipGroups.from_assignment(assignment), "1d-1d", "flash")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["padded", "flex", "flash", "varlen", "xformers"])
def test_backend_equals_naive_on_a_gpu(assignment: Tensor, kind: str, backend: str) -> None:
    if backend in kernels.KERNELS and kernels.optional_function(backend) is None:
        pytest.skip(f"{backend} is not installed")
    groups = ClipGroups.from_assignment(assignment.cuda())
    dtype = torch.bfloat16
    pairs = zip(
        run(groups, kind, backend, "cuda", dtype),
        run(groups, kind, "naive", "cuda", dtype),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.float(), theirs.float(), atol=5e-2, rtol=5e-2)


@torch.no_grad()
@pytest.mark.parametrize("start", ["aligned", "first"])
def test_half_precision_encodes_and_decodes(start: str, clips: Tensor, assignment: Tensor) -> None:
    model = toy(start)
    want = model(clips, assignment).clips
    half = toy(start).to(torch.bfloat16)
    for given in (clips, clips.bfloat16()):
        tokens = half.encode(given, assignment)
        assert tokens.ids.shape == (int(assignment.sum()),)
        assert half.decode(tokens).dtype == torch.bfloat16
    out = half.decode(model.encode(clips, assignment)).float()
    assert (out - want).norm() < 0.05 * want.norm()


@torch.no_grad()
def test_a_router_of_half_precision_assigns(clips: Tensor) -> None:
    config = RouterConfig(
        levels=(1, 2, 4), num_frames=12, size=16, width=24, layers=1, heads=2, preference=True
    )
    router = Router(config).to(torch.bfloat16).eval()
    assert router.assign(clips).shape == (5, 3)
    assert router.assign(clips, w_q=1.5).shape == (5, 3)


@torch.no_grad()
def test_nothing_is_made_twice_for_a_device(clips: Tensor, assignment: Tensor) -> None:
    """Matrices of a level and grids of blocks are the same tensors in every call."""
    places = toy().decoder_places
    assert places.pool(1) is places.pool(1)
    for start in ("aligned", "first"):
        assert places.expand(2, start) is places.expand(2, start)
    one, two = ClipGroups.from_assignment(assignment), ClipGroups.from_assignment(assignment)
    assert one.grid(CELLS) is two.grid(CELLS)
    assert places.pool(1).dtype == torch.float32
    assert toy().to(torch.bfloat16).decoder_places.pool(1).dtype == torch.bfloat16
