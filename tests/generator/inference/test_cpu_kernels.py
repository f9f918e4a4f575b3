"""Compiled decode steps against the same arithmetic in PyTorch."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generator.gpt import GPT
from generator.grammar import Vocabulary
from generator.inference import cpu_kernels as native
from generator.inference.cpu_kernels import CpuDecoder, NoCompiler, Slots, library, quantize_int8
from generator.inference.engine import sample
from generator.inference.optimize import Weights, prepare_for_inference
from generator.inference.requests import SamplingConfig, class_requests
from tests.generator.inference.mixed import mixed_requests
from training import c_kernels

FORMS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")
# Options that make a compiler write for a lesser processor than this one.
X86 = platform.machine() == "x86_64"
LESSER = ("-mno-avx512bf16", "-march=haswell") if X86 else ("-fno-tree-vectorize",)


@pytest.fixture
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, also for models as small as these."""
    monkeypatch.setattr(native, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def some_ids(gpt: GPT, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(gpt.vocabulary.size, shape, generator=generator)


def stepped(rows: Slots, ids: Tensor) -> Tensor:
    """Logits (R, S, V) of sequences (R, S), token by token."""
    rows.add_requests([row[:0] for row in ids])
    return torch.stack([rows.step(column) for column in ids.T], 1)


def rounded(gpt: GPT, weights: Weights) -> GPT:
    """The plain model with every linear weight rounded as the form says."""
    gpt = copy.deepcopy(gpt)
    for module in gpt.modules():
        if isinstance(module, torch.nn.Linear) and weights == "bfloat16":
            module.weight.data = module.weight.data.bfloat16().float()
        elif isinstance(module, torch.nn.Linear) and weights == "int8":
            scales, values = quantize_int8(module.weight.data)
            module.weight.data = values * scales[:, None]
    return gpt


SIZES = (
    {"width": 64, "heads": 1, "hidden": 160, "layers": 3},  # a head of 64
    {"width": 96, "heads": 4, "hidden": 50},  # heads of 24 and a hidden width that is padded
    {"width": 288, "heads": 2, "hidden": 64},  # heads of 144
    {"width": 32, "heads": 8, "hidden": 33, "layers": 1},  # heads of 4
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", FORMS)
def test_logits_are_the_models(
    make_gpt: Callable[..., GPT], vocabulary: Vocabulary, size: dict[str, int], weights: Weights
) -> None:
    gpt = make_gpt(vocabulary, **size)
    with torch.no_grad():
        for layer in gpt.layers:
            for parameter in layer.parameters():
                parameter *= 0.3
    ids = some_ids(gpt, 5, 23)
    found = stepped(Slots(CpuDecoder(gpt, weights), 5, 23), ids)
    cu_seqlens = torch.arange(0, 5 * 23 + 1, 23, dtype=torch.int32)
    with torch.inference_mode():
        expected = rounded(gpt, weights)(ids.flatten(), cu_seqlens).view(5, 23, -1)
    # beside float32 weights, keys and values are rounded to 8 bits too
    tolerance = 2e-5 if weights == "float32" else 2e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("weights", FORMS)
def test_a_row_is_the_same_among_any_others(
    make_gpt: Callable[..., GPT], vocabulary: Vocabulary, weights: Weights
) -> None:
    """To the bit: alone, among rows of other lengths, read as a prompt, with one thread or two."""
    gpt = make_gpt(vocabulary, width=64, hidden=96)
    steps, ids = CpuDecoder(gpt, weights), some_ids(gpt, 20, 24)
    alone = torch.cat([stepped(Slots(steps, 1, 24), ids[row : row + 1]) for row in range(3)])
    together = stepped(Slots(steps, 20, 40), ids)
    assert torch.equal(together[:3], alone)
    torch.set_num_threads(1)
    assert torch.equal(stepped(Slots(steps, 20, 24), ids), together)
    torch.set_num_threads(2)
    uneven = Slots(steps, 3, 24)
    uneven.add_requests([ids[0, :0], ids[1, :9], ids[2, :23]])
    firsts = torch.stack([ids[0, 0], ids[1, 9], ids[2, 23]])
    expected = torch.stack([alone[0, 0], alone[1, 9], alone[2, 23]])
    assert torch.equal(uneven.step(firsts), expected)


@pytest.mark.parametrize("weights", FORMS)
@pytest.mark.parametrize("option", LESSER)
def test_processors_without_wide_products(
    make_gpt: Callable[..., GPT],
    vocabulary: Vocabulary,
    weights: Weights,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The code for lesser processors gives the same logits, and bits that no batch changes."""
    gpt, ids = make_gpt(vocabulary, width=64, hidden=96), some_ids(make_gpt(vocabulary), 20, 24)
    steps = CpuDecoder(gpt, weights)
    expected = stepped(Slots(steps, 20, 24), ids)
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "OPTIONS", (*native.OPTIONS, option, "-Wno-psabi"))
    library.cache_clear()
    try:
        found = stepped(Slots(steps, 20, 24), ids)
        alone = stepped(Slots(steps, 1, 24), ids[3:4])
    finally:
        library.cache_clear()
    tolerance = 2e-5 if weights == "float32" else 2e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(alone[0], found[3])


def test_slots_are_taken_again(make_gpt: Callable[..., GPT], vocabulary: Vocabulary) -> None:
    gpt = make_gpt(vocabulary, width=32)
    steps, ids = CpuDecoder(gpt, "float32"), some_ids(gpt, 4, 8)
    rows = Slots(steps, 3, 8)
    stepped(rows, ids[:3, :4])
    assert rows.retain([0, 2]) == [0, 2]
    rows.add_requests([ids[3, :5]])
    logits = rows.step(torch.stack([ids[0, 4], ids[2, 4], ids[3, 5]]))
    expected = stepped(Slots(steps, 4, 8), ids)
    assert torch.equal(logits, torch.stack([expected[0, 4], expected[2, 4], expected[3, 5]]))


def test_a_long_prompt_is_read_in_parts(
    make_gpt: Callable[..., GPT], vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = make_gpt(vocabulary, width=32)
    steps, ids = CpuDecoder(gpt, "bfloat16"), some_ids(gpt, 2, 24)
    monkeypatch.setattr(native, "PREFILL", 7)
    rows = Slots(steps, 2, 24)
    rows.add_requests([ids[0, :23], ids[1, :20]])
    expected = stepped(Slots(steps, 2, 24), ids)
    logits = rows.step(torch.stack([ids[0, 23], ids[1, 20]]))
    assert torch.equal(logits, torch.stack([expected[0, 23], expected[1, 20]]))


@pytest.mark.parametrize("weights", FORMS)
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_samples_do_not_depend_on_the_batch(gpt: GPT, weights: Weights, batch_size: int) -> None:
    """In every form, and with conditions, guidance and settings of all kinds."""
    fast = prepare_for_inference(gpt, weights, compiled=True)
    requests = mixed_requests(gpt, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(batch_size)).tolist()
    together = sample(fast, requests, batch_size=40).blocks()
    shuffled = sample(fast, [requests[i] for i in order], batch_size=batch_size).blocks()
    for place, index in enumerate(order):
        assert all(map(torch.equal, shuffled[place], together[index]))


def test_samples_are_those_of_pytorch(gpt: GPT) -> None:
    requests = mixed_requests(gpt, 60)
    fast, slow = (
        sample(prepare_for_inference(gpt, compiled=compiled), requests, 16)
        for compiled in (True, False)
    )
    assert torch.equal(fast.ids, slow.ids) and torch.equal(fast.assignment, slow.assignment)


def test_too_long_a_row_is_refused(make_gpt: Callable[..., GPT], vocabulary: Vocabulary) -> None:
    rows = Slots(CpuDecoder(make_gpt(vocabulary), "float32"), 1, 16)
    stepped(rows, torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="17 tokens; the cache has 16"):
        rows.step(torch.tensor([0]))


def test_without_a_compiler_pytorch_steps(
    gpt: GPT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = class_requests(gpt.vocabulary, [0, 1], [0, 1], SamplingConfig())
    expected = sample(prepare_for_inference(gpt, compiled=True), requests)
    library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("INFO"):
        plain = prepare_for_inference(gpt)
    assert plain.compiled is None
    assert "PyTorch's, since no C compiler no-such-compiler" in caplog.text
    assert torch.equal(sample(plain, requests).ids, expected.ids)
    with pytest.raises(NoCompiler, match="no C compiler"):
        prepare_for_inference(gpt, compiled=True)
    library.cache_clear()


def test_a_compiler_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library.cache_clear()
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "OPTIONS", ("-no-such-option",))
    with pytest.raises(NoCompiler, match=r"does not compile kernels.c: .*no-such-option"):
        library()
    library.cache_clear()


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(NoCompiler, match="cannot be written"):
        library()
    library.cache_clear()


def loaded(cache: Path) -> subprocess.Popen[str]:
    """Another process that loads the kernels; a damaged library would end it by a signal."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.generator.inference.load_kernels"],
        env=os.environ | {"EVATOK_CACHE": str(cache)},
        cwd=Path(native.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_damaged_library_is_compiled_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By two processes at once where there is none, then where it was cut."""
    both = [loaded(tmp_path), loaded(tmp_path)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    (path,) = (tmp_path / "kernels").iterdir()  # and nothing beside it
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = loaded(tmp_path)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0 and "is damaged: compiled again" in errors
    assert [*(tmp_path / "kernels").iterdir()] == [path] and path.read_bytes() == whole
    path.write_bytes(bytes(len(whole)))  # as long as it was
    assert c_kernels._cached(path.parent, path.name.split("-")[0]) is None
    assert "is damaged" in caplog.text and not path.exists()


def test_a_width_that_does_not_fit_is_told(
    make_gpt: Callable[..., GPT], vocabulary: Vocabulary
) -> None:
    with pytest.raises(NoCompiler, match="width of 48"):
        CpuDecoder(make_gpt(vocabulary, width=48), "float32")
