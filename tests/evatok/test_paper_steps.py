"""One real optimisation step of every paper config at batch 1, in bf16, each in its own process.

Tokenizers go through their own stage and the training loop, with LPIPS, the alignment and the
discriminator that their settings ask for. The frozen networks, which are not at hand, are made at
their full size with random weights: a step shows memory, time and gradients, and measures nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation.perceptual.lpips import VGG16
from evatok.core.config import read_yaml
from tokenizer.router import Router, RouterConfig
from video.writing import write_video

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 20 * 1024**3  # bytes
TOKENIZERS, OTHERS = ("proxy", "final"), ("router", "generator")
PATHS = [
    path
    for family in ("webvid", "ucf101", "k600", "small")
    for path in sorted((ROOT / "configs" / family).glob("*.yaml"))
    if read_yaml(path).get("stage") in (*TOKENIZERS, *OTHERS)
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, a router and the frozen encoders at their full size, with random weights."""
    import transformers

    folder = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    encoders = {
        "videomae": transformers.VideoMAEModel(transformers.VideoMAEConfig()),
        "vjepa2": transformers.VJEPA2Model(transformers.VJEPA2Config()),
    }
    for name, net in encoders.items():
        net.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(pixels))
    save_file(torchvision_names(VGG16().state_dict()), folder / "vgg16.safetensors")
    for name in ("ucf101/router", "small/preference"):
        settings = read_yaml(ROOT / "configs" / f"{name}.yaml")["model"]
        router = Router(RouterConfig.model_validate(settings))
        router.save_pretrained(folder / "routers" / Path(name).parent)
    rng = np.random.default_rng(0)
    names = ["v_Ball_g08_c01.avi", "v_Ball_g01_c01.avi"]
    for name in names:
        frames = rng.integers(0, 255, (16, 128, 128, 3), dtype=np.uint8)
        write_video(folder / "data" / "Ball" / name, frames, 25)
    for split, name in zip(("train", "test"), names, strict=True):
        (folder / "data" / f"{split}list01.txt").write_text(f"Ball/{name} 1\n")
    (folder / "data" / "classInd.txt").write_text("1 Ball\n")
    return folder


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `VGG16` as torchvision counts them: ReLUs and pools have numbers too."""
    names, number, group = {}, -2, "0"
    for name, tensor in state.items():
        _, now, _, part = name.split(".")
        number += 2 * (part == "weight") + (now != group)
        group = now
        names[f"features.{number}.{part}"] = tensor
    return names


def overrides_of(path: Path, folder: Path) -> list[str]:
    """A step of batch 1 on the stand-ins, with both sides at play."""
    settings = read_yaml(path)
    changes = [
        "train.steps=1",
        "train.batch_size=1",
        "train.log_every=1",
        "validation_clips=1",
        f"data.cache_dir={folder / 'cache'}",
        f"data.sources=[{{kind: ucf101, root: {folder / 'data'}}}]",
    ]
    if path.parent.name == "small":
        changes += ["start_from=null", "start_from_data=false", "train.compile=false"]
    else:
        changes += [
            f"loss.perceptual.path={folder / 'vgg16.safetensors'}",
            f"alignment.path={folder / 'vjepa2'}",
        ]
    if settings.get("router") is not None:
        family = "small" if path.parent.name == "small" else "ucf101"
        changes.append(f"router={folder / 'routers' / family}")
    adversarial = settings.get("adversarial", {})
    if adversarial:
        changes.append("adversarial.start_step=0")
    if adversarial.get("discriminator", {}).get("kind") == "semantic":
        changes.append(f"adversarial.discriminator.path={folder / 'videomae'}")
    return changes


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_one_step(
    path: Path, stand_ins: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    settings = read_yaml(path)
    command = [sys.executable, "-m", "tests.evatok.paper_step", str(path)]
    expected = {"loss"}
    if settings["stage"] in TOKENIZERS:
        command += [str(tmp_path / "run"), *overrides_of(path, stand_ins)]
        expected |= {"l1", "codebook", "commitment", "entropy"}
        if "adversarial" in settings:
            expected |= {"adversarial", settings["loss"]["perceptual"]["network"]}
        if settings.get("alignment", {}).get("weight"):
            expected.add("alignment")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    print(f"{row['seconds']:.1f} s, {row['peak'] / 1024**3:.2f} GiB")
    assert expected <= set(row["terms"])
    assert row["peak"] < LIMIT
    for name, value in row.items():
        record_property(name, value)
