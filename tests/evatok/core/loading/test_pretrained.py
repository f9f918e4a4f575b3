"""Model folders that are not what they say: refused in one line, before memory is asked for."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.encoders.nano import NanoNet
from evatok.core.loading.pretrained import Pretrained
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router, RouterConfig

SIZES = {"levels": (1, 4), "num_frames": 8, "size": 16}


def tokenizer() -> VideoTokenizer:
    former = QFormerConfig(width=16, layers=1, heads=2)
    return VideoTokenizer(
        TokenizerConfig(**SIZES, encoder=former, decoder=former, codebook_size=16, code_dim=4)  # type: ignore[arg-type]
    )


def router() -> Router:
    return Router(RouterConfig(**SIZES, width=16, layers=1, heads=2))  # type: ignore[arg-type]


def gpt() -> GPT:
    vocabulary = Vocabulary(codebook_size=16, levels=(1, 4), num_blocks=2, class_names=("a", "b"))
    return GPT(GPTConfig(width=16, layers=1, heads=2, hidden=16), vocabulary)


def features() -> NanoNet:
    return NanoNet(["a", "b"], widths=(4, 4), dim=8)


MAKERS: dict[str, Callable[[], Any]] = {
    "tokenizer": tokenizer,
    "router": router,
    "gpt": gpt,
    "features": features,
}


@pytest.fixture(params=MAKERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[type[Pretrained], Path]:
    """A class and a folder of a model of it."""
    torch.manual_seed(0)
    model = MAKERS[request.param]()
    model.save_pretrained(tmp_path / "m")
    return type(model), tmp_path / "m"


def refused(kind: type[Pretrained], folder: Path, *words: str) -> None:
    """Loading fails with one line that names the file and holds the words; it takes no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        kind.from_pretrained(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 600
    assert "copy the folder anew" in message
    for word in words:
        assert word in message
    assert grown < 300_000  # kB


def change(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite the weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def first(tensors: dict[str, Tensor]) -> str:
    return next(n for n, t in sorted(tensors.items()) if t.ndim >= 2 and t.is_floating_point())


def test_whole_folders_load(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    change(folder, lambda t: t.update({n: v.half() for n, v in t.items() if v.is_floating_point()}))
    model: Any = kind.from_pretrained(str(folder))
    assert not model.training
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.state_dict()[name].dtype))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\x80\x00\xff", b"[" * 10**5])
def test_config_that_is_no_object(saved: tuple[type[Pretrained], Path], content: bytes) -> None:
    kind, folder = saved
    (folder / "config.json").write_bytes(content)
    refused(kind, folder, "config.json")


def test_config_without_a_key(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    config = json.loads((folder / "config.json").read_text())
    key = next(k for k in ("levels", "vocabulary", "class_names") if k in config)
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    refused(kind, folder, "config.json", key, "equired" if key == "levels" else "missing")


def test_config_with_another_key(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    config = json.loads((folder / "config.json").read_text()) | {"widht": 3}
    (folder / "config.json").write_text(json.dumps(config))
    refused(kind, folder, "config.json", "widht")


IMPOSSIBLE = [
    (tokenizer, ("encoder", "width"), 10**9),
    (tokenizer, ("encoder", "width"), 65_536),
    (tokenizer, ("decoder", "layers"), 10**8),
    (tokenizer, ("decoder", "layers"), 1000),
    (tokenizer, ("encoder", "heads"), 0),
    (tokenizer, ("patch",), [0, 8, 8]),
    (tokenizer, ("codebook_size",), 10**12),
    (tokenizer, ("levels",), [4, 1]),
    (tokenizer, ("levels",), []),
    (tokenizer, ("num_frames",), 10**9),
    (tokenizer, ("entropy_temperature",), float("nan")),
    (router, ("width",), 10**9),
    (router, ("layers",), 10**8),
    (router, ("heads",), 0),
    (router, ("num_frames",), 4096),
    (router, ("patch",), [4, 0, 8]),
    (router, ("standard",), 3),
    (gpt, ("size", "width"), 10**9),
    (gpt, ("size", "layers"), 10**8),
    (gpt, ("size", "heads"), 0),
    (gpt, ("size", "hidden"), -1),
    (gpt, ("vocabulary", "num_blocks"), 10**9),
    (gpt, ("vocabulary",), {"codebook_size": 16, "levels": [1, 65_536], "num_blocks": 4096}),
    (gpt, ("vocabulary",), None),
    (features, ("dim",), 10**9),
    (features, ("dim",), -1),
    (features, ("widths",), [10**10, 10**10]),
    (features, ("widths",), []),
    (features, ("class_names",), 3),
]


@pytest.mark.parametrize(("maker", "path", "value"), IMPOSSIBLE)
def test_impossible_sizes(
    maker: Callable[[], Any], path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    model = maker()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(type(model), tmp_path)


def test_missing_weights(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    names: list[str] = []
    change(folder, lambda t: (names.append(first(t)), t.pop(names[0])))
    refused(kind, folder, "model.safetensors", "1 missing", names[0])


def test_unexpected_weights(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    change(folder, lambda t: t.update(extra=torch.zeros(2)))
    refused(kind, folder, "model.safetensors", "1 unexpected (extra)")


def test_renamed_weights(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    change(folder, lambda t: t.update(other=t.pop(first(t))))
    refused(kind, folder, "1 missing", "1 unexpected (other)")


def test_weights_of_another_shape(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    change(folder, lambda t: t.update({first(t): t[first(t)].flatten()}))
    refused(kind, folder, "model.safetensors", "1 of another shape")


def test_weights_of_another_kind(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    change(folder, lambda t: t.update({first(t): t[first(t)].to(torch.int32)}))
    refused(kind, folder, "model.safetensors", "I32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(saved: tuple[type[Pretrained], Path], value: float) -> None:
    kind, folder = saved
    change(folder, lambda t: t[first(t)].view(-1)[-1:].fill_(value))
    refused(kind, folder, "model.safetensors", "not finite")


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "junk", "declares"])
def test_damaged_weights(saved: tuple[type[Pretrained], Path], damage: str) -> None:
    kind, folder = saved
    path = folder / "model.safetensors"
    content = path.read_bytes()
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) * 2 // 3],
            "header": content[:20] + b"\xff" + content[21:],
            "junk": b"no weights at all",
            "declares": struct.pack("<Q", len(huge)) + huge.encode(),
        }[damage]
    )
    refused(kind, folder, "no whole safetensors file")


def test_missing_files_and_folders(saved: tuple[type[Pretrained], Path]) -> None:
    kind, folder = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        kind.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        kind.from_pretrained(folder / "not-there")
    with pytest.raises(FileNotFoundError, match="no folder here, and the Hugging Face hub"):
        kind.from_pretrained("nobody/nothing")  # offline in tests


def test_outline_takes_no_random_numbers(saved: tuple[type[Pretrained], Path]) -> None:
    """What is drawn after loading does not depend on the checks: as many as building draws."""
    kind, folder = saved
    torch.manual_seed(1)
    loaded: Any = kind.from_pretrained(folder)
    after = torch.rand(3)
    torch.manual_seed(1)
    arguments = {"config": loaded.config} if hasattr(loaded, "config") else None
    if arguments is None:
        arguments = (
            {"size": loaded.size, "vocabulary": loaded.vocabulary}
            if isinstance(loaded, GPT)
            else {"class_names": ["a", "b"], "widths": (4, 4), "dim": 8}
        )
    kind(**arguments)
    assert torch.equal(after, torch.rand(3))
