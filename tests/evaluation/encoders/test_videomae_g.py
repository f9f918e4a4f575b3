"""The network of content-debiased FVD, against Transformers' with the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEModel

from evaluation.encoders.i3d.tats import truncated
from evaluation.encoders.load import load_features
from evaluation.encoders.videomae_g import Shape, VideoMAEGFeatures, checked
from evaluation.fetch import WeightsError

TINY = Shape(dim=16, layers=2, heads=2, hidden=24, patch=14, tube=2, size=28, frames=4, classes=3)


def random_state(shape: Shape = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator) * (0.02 if "patch" in name else 0.3)
            for name, size in shape.tensors().items()}  # fmt: skip


def transformers_twin(state: dict[str, Tensor]) -> Any:
    """Transformers' module with these weights."""
    config = VideoMAEConfig(
        image_size=28,
        patch_size=14,
        num_frames=4,
        tubelet_size=2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        layer_norm_eps=1e-6,
        use_mean_pooling=True,
    )
    net: Any = VideoMAEModel(config).eval()
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    prefix = "embeddings.patch_embeddings.projection"
    out = {f"{prefix}.{leaf}": state[f"patch_embed.proj.{leaf}"] for leaf in ("weight", "bias")}
    for n in range(TINY.layers):
        here, there = f"blocks.{n}.", f"encoder.layer.{n}."
        for ours, theirs in names.items():
            for leaf in ("weight", "bias"):
                out[f"{there}{theirs}.{leaf}"] = state[f"{here}{ours}.{leaf}"]
        parts = state[f"{here}attn.qkv.weight"].chunk(3)
        for which, weight in zip(("query", "key", "value"), parts, strict=True):
            out[f"{there}attention.attention.{which}.weight"] = weight
        for which, name in (("query", "q_bias"), ("value", "v_bias")):
            out[f"{there}attention.attention.{which}.bias"] = state[f"{here}attn.{name}"]
    net.load_state_dict(out)
    return net


@torch.no_grad()
def test_against_transformers() -> None:
    """Bytes cut off, the whole frame to the network's size, [0, 1], the mean token's norm."""
    state = random_state()
    network = VideoMAEGFeatures(checked(state, "here", TINY), shape=TINY)
    clips = torch.rand(3, 3, 4, 20, 36, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = (truncated(clips) + 1) / 2
    frames = F.interpolate(
        pixels.transpose(1, 2).flatten(0, 1), (28, 28), mode="bilinear", align_corners=False
    )
    tokens = transformers_twin(state)(frames.unflatten(0, (3, 4))).last_hidden_state
    norm = state["fc_norm.weight"], state["fc_norm.bias"]
    expected = F.layer_norm(tokens.mean(1), (16,), *norm, eps=1e-6)
    got = network(clips)
    assert got.shape == (3, network.dim) and torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(network(clips[1:2]), got[1:2])  # whatever the batch
    with pytest.raises(ValueError, match="clips of 6 frames: videomae-g takes 4: give --frames 4"):
        network(torch.zeros(1, 3, 6, 28, 28))


def test_the_tensors_of_the_file() -> None:
    """1.01 billion numbers in 526 tensors; 2 048 tokens."""
    shapes = Shape().tensors()
    assert len(shapes) == 526 and Shape().tokens == 2048
    assert sum(map(math.prod, shapes.values())) == 1_011_855_918
    assert shapes["blocks.39.mlp.fc1.weight"] == (6144, 1408)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """In one line that names the file, what is wrong, and where the right one is published."""
    state = random_state()
    checked(state, "here", TINY)
    half = {name: tensor for name, tensor in state.items() if "fc2" not in name}
    cases: list[tuple[dict[str, Tensor], str]] = [
        (half, r"lacks blocks\.0\.mlp\.fc2\.weight \(4 of 32 names missing, 0 unknown\)"),
        (state | {"norm.weight": torch.zeros(16)}, r"has norm\.weight \(0 of 32"),
        (state | {"head.bias": torch.zeros(4)}, r"head\.bias is \(4,\), not \(3,\)"),
    ]
    for wrong, match in cases:
        with pytest.raises(WeightsError, match=match):
            checked(wrong, "here", TINY)
    with pytest.raises(ValueError, match=r"fc_norm\.bias holds values that are not finite"):
        checked(state | {"fc_norm.bias": torch.full((16,), torch.nan)}, "here", TINY)
    path = tmp_path / "tiny.pth"
    torch.save({"module": state}, path)
    (tmp_path / "junk.pth").write_bytes(b"no tensors")
    torch.save([1], tmp_path / "list.pth")
    for name, said in (
        (f"videomae-g:{path}", "is not vit_g_hybrid_pt_1200e_ssv2_ft.pth: it lacks blocks.2."),
        (f"videomae-g:{tmp_path / 'junk.pth'}", "cannot be read as tensors"),
        (f"videomae-g:{tmp_path / 'list.pth'}", "holds no state dict of tensors"),
        (f"videomae-g:{tmp_path / 'none.pth'}", "no file"),
        ("videomae-g", "needs its file"),
    ):
        with pytest.raises(ValueError) as caught:
            load_features(name)
        message = str(caught.value)
        assert said in message and "OpenGVLab" in message and "\n" not in message
