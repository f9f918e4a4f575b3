"""I3D files of other projects: what is run, what is refused, what happens to clips before."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.encoders.base import weights_checksum
from evaluation.encoders.i3d import torchscript as i3d_torchscript
from evaluation.encoders.i3d.network import I3DFeatures, fold, preprocess
from evaluation.encoders.i3d.tats import EPSILON, TatsFeatures, expected_shapes, truncated
from evaluation.encoders.i3d.weights import read_weights
from evaluation.encoders.load import load_features
from evaluation.fetch import WeightsError
from evatok.hub import feature_networks


class Script(nn.Module):
    """The call of the published file; its numbers tell which way it was called."""

    def __init__(self, outputs: int = 400) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if rescale or resize or not return_features or x.shape[-1] != 224 or x.shape[-2] != 224:
            return x.new_zeros(0, 0)
        return x.flatten(1)[:, : self.outputs]


def script(path: Path, outputs: int = 400) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Script(outputs).eval()).save(str(path))
    return path


@pytest.fixture
def clips() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 9, 20, 30, generator=generator) * 2 - 1


def test_a_known_file_runs(tmp_path: Path, clips: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With clips in [-1, 1] at 224 × 224, and under its own sha256."""
    path = script(tmp_path / "i3d_torchscript.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(i3d_torchscript, "SHA256", sha256)
    network = load_features(f"i3d-torchscript:{path}")
    assert (network.name, network.dim, network.checksum) == ("i3d-torchscript", 400, sha256)
    expected = preprocess(clips).flatten(1)[:, :400]
    assert torch.equal(network(clips), expected)
    assert torch.equal(network(clips[1:2]), expected[1:2])
    assert network(clips[:0]).shape == (0, 400)


def test_an_unknown_program_runs_only_when_trusted(tmp_path: Path, clips: Tensor) -> None:
    path = script(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt is not the published I3D.*--trust"):
        feature_networks(f"i3d-torchscript:{path}", "nano")
    (network,) = feature_networks(f"i3d-torchscript:{path}", "nano", trust=True)
    assert network.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network(clips).shape == (3, 400)


def test_refusals_of_programs(tmp_path: Path, clips: Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs its file.*sha256 bec6519f"):
        load_features("i3d-torchscript")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_features("i3d-torchscript:nowhere.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no program")
    with pytest.raises(WeightsError, match=r"broken\.pt.*no TorchScript"):
        load_features("i3d-torchscript", broken, trust=True)
    narrow = load_features("i3d-torchscript", script(tmp_path / "narrow.pt", 7), trust=True)
    with pytest.raises(ValueError, match=r"returns \(1, 7\) for 1 clips, not \(1, 400\)"):
        narrow(clips)
    with pytest.raises(ValueError, match="clips of 8 frames: I3D needs 9"):
        narrow(clips[:, :, :8])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Names and shapes of the TATS file; its values, where this machine has the weights."""
    generator = torch.Generator().manual_seed(0)
    random = {
        name: torch.rand(shape, generator=generator) * 0.02 + float("var" in name)
        for name, shape in expected_shapes().items()
    }
    for name in random:
        if name.endswith("bn.weight"):
            random[name] = torch.ones_like(random[name])
    return random


def test_names_are_those_of_our_own_weights(state: dict[str, Tensor]) -> None:
    """57 layers with BatchNorm and the logits; every one has its place in the folded network."""
    assert len(state) == 57 * 5 + 2
    assert sum(t.numel() for t in state.values()) == 12_704_544 + 7_280
    ours = read_weights()
    assert {name for name in state if not name.endswith("bn.weight")} == set(ours)
    assert all(ours[name].shape == state[name].shape for name in ours)


def test_folding_is_batch_norm_with_its_scale() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(3, 5, 1, bias=False), nn.BatchNorm3d(5, eps=EPSILON).eval()
    state = {"u.conv3d.weight": conv.weight.detach()}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"u.bn.{name}"] = torch.rand(5) + 0.1
        getattr(norm, name).data = state[f"u.bn.{name}"]
    folded = fold(state, EPSILON)
    x = torch.rand(2, 3, 2, 4, 4)
    found = F.conv3d(x, folded["u.weight"], folded["u.bias"])
    torch.testing.assert_close(found, norm(conv(x)).detach())


def test_the_file_of_tats(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """As torch and as safetensors, with counters and without: one network, one checksum."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for name in state
        if name.endswith("running_var")
    }
    torch.save(state | counters, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    found = [load_features(f"i3d-tats:{tmp_path / f'a.{kind}'}") for kind in ("pt", "safetensors")]
    for network in found:
        assert (network.name, network.dim) == ("i3d-tats", 400)
        assert network.checksum == weights_checksum(state)
    assert isinstance(found[0], TatsFeatures)
    for name, tensor in fold(state, 1e-5).items():
        assert torch.equal(found[0].model.state_dict()[name], tensor), name
    clip = torch.rand(1, 3, 9, 24, 24) * 2 - 1
    theirs = found[0](clip)
    class_like = I3DFeatures(state)
    class_like.model.load_state_dict(fold(state, 1e-5))
    assert torch.equal(theirs, class_like(truncated(clip)))


def test_bytes_are_cut_off_and_whole_ones_kept() -> None:
    whole = torch.arange(256).float() / 127.5 - 1
    torch.testing.assert_close(truncated(whole), whole)
    between = (torch.arange(255).float() + 0.9) / 127.5 - 1
    torch.testing.assert_close(truncated(between), whole[:-1])


def test_refusals_of_states(tmp_path: Path, state: dict[str, Tensor]) -> None:
    def refused(content: object, match: str) -> None:
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(WeightsError, match=match):
            load_features(f"i3d-tats:{tmp_path / 'x.pt'}")

    lacking = {name: t for name, t in state.items() if name != "Mixed_5c.b0.bn.bias"}
    refused(lacking, r"lacks Mixed_5c\.b0\.bn\.bias \(1 of 287 names missing, 0 unknown")
    refused(state | {"more": torch.zeros(1)}, r"has more \(0 of 287 .* 1 unknown")
    wrong = state | {"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}
    refused(wrong, r"logits\.conv3d\.weight is \(600, .*not \(400")
    not_finite = state | {"logits.conv3d.bias": torch.full((400,), float("nan"))}
    torch.save(not_finite, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"logits\.conv3d\.bias holds values that are not finite"):
        load_features(f"i3d-tats:{tmp_path / 'x.pt'}")
    refused([torch.zeros(1)], "holds no state dict of tensors")
    refused(Path("not tensors"), "cannot be read as tensors")
    with pytest.raises(ValueError, match="needs its file"):
        load_features("i3d-tats")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_features("i3d-tats:nowhere.pt")
