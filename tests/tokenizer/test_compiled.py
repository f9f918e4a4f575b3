"""Training with compiled parts: the numbers of plain PyTorch, and no step compiles again.

The code is captured but run by PyTorch ("aot_eager"): what differs from the plain way, capturing
and padded attention, is all here, and no C++ compiler takes its time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from evatok.core.config import ConfigError
from tests.tokenizer.conftest import toy
from tokenizer.attention.batch_layout import BlockLevels, Side
from tokenizer.attention.clip_groups import ClipGroups, padded_attention
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import VideoTokenizer
from training import compilation

# the compiler warns about what it does itself
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    compilation.compiled.cache_clear()
    torch.compiler.reset()
    yield
    compilation.compiled.cache_clear()
    torch.compiler.reset()


def step(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, is_compiled: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    model.is_compiled = model.quantizer.is_compiled = is_compiled
    model.zero_grad()
    loss, _ = tokenizer_loss(
        model(clips, assignment), clips, LossConfig(l2=1.0, log_l2=0.1), is_compiled=is_compiled
    )
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("captured")
def test_a_compiled_step_is_the_plain_step(clips: Tensor, assignment: Tensor) -> None:
    model = toy(token_positions=True).train()
    shuffled = assignment[[4, 4, 3, 1, 0]]
    for number, chosen in enumerate([assignment, shuffled, assignment[:, [1, 2, 0]]]):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss, gradients = step(model, clips, chosen, is_compiled=True)
        want, wanted = step(model, clips, chosen, is_compiled=False)
        torch.testing.assert_close(loss, want, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(
                gradient, wanted[name], atol=1e-5 * (1 + scale), rtol=1e-4, msg=name
            )


@pytest.mark.usefixtures("captured")
def test_compiled_parts_are_for_training_only(clips: Tensor, assignment: Tensor) -> None:
    model = toy()
    want = model(clips, assignment).clips
    state = list(model.state_dict())
    assert compilation.compile_parts(model) and list(model.state_dict()) == state
    assert torch.equal(model(clips, assignment).clips, want)
    assert not compilation.compile_parts(torch.nn.Linear(2, 2))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no-such-compiler.*train\.compile=false"):
        compilation.compile_parts(toy())


def test_padded_attention_is_that_of_groups(assignment: Tensor) -> None:
    groups = ClipGroups.from_assignment(assignment)
    rows = {"1d": groups.num_rows, "3d": len(assignment) * 3 * 4}
    sides = {"1d": groups.tokens, "3d": groups.grid(4)}
    generator = torch.Generator().manual_seed(0)
    for kind in ("1d-1d", "1d-3d", "3d-1d", "3d-3d"):
        own, other = kind.split("-")
        shapes = [(rows[own], 2, 8), (rows[other], 2, 8), (rows[other], 2, 8)]
        inputs = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]
        weight = torch.randn(shapes[0], generator=generator)
        results = []
        q, k, v = inputs
        for out in (
            groups.attend(q, k, v, 4, kind, "groups"),
            padded_attention(q, k, v, sides[own], sides[other]),
        ):
            results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_blocks_sorted_by_level() -> None:
    """Two clips of two blocks with levels (1, 2, 4)."""
    blocks = BlockLevels.from_ranks(torch.tensor([[2, 0], [1, 2]]), (1, 2, 4), torch.device("cpu"))
    assert blocks.ranks == (0, 1, 2) and blocks.sizes == (1, 1, 2)
    assert blocks.blocks[0].tolist() == [1, 2, 0, 3]
    # packed rows: block 0 has 0–3, block 1 has 4, block 2 has 5–6, block 3 has 7–10
    assert blocks.rows[0].tolist() == [4, 5, 6, 0, 1, 2, 3, 7, 8, 9, 10]
    # the table has a row for 1 + 2 + 4 tokens of block 0 of a clip, then those of its block 1
    assert blocks.level_rows.tolist() == [3, 4, 5, 6, 7, 1, 2, 10, 11, 12, 13]


def test_sides() -> None:
    side = Side.of_tokens(torch.tensor([[1, 2], [1, 1]]))
    assert side.blocks.tolist() == [[0, 1, 1], [0, 1, 2]]
    assert side.places is not None and side.places.tolist() == [[0, 1, 2], [3, 4, 0]]
    assert side.rows is not None and side.rows.tolist() == [0, 1, 2, 3, 4]
    assert Side.of_grid(2, 2, torch.device("cpu")).blocks.tolist() == [[0, 0, 1, 1]]
