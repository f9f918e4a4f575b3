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
    for family in ("webvid", "ucf101", "k600")
    for path in sorted((ROOT / "configs" / family).glob("*.yaml"))
    if read_yaml(path).get("stage") in (*TOKENIZERS, *OTHERS)
]

# Peak memory belongs to a process, so that every step gets one. Every checkpoint would be 2 GB: the
# loop runs, its save does not.
TOKENIZER = """
import json, resource, sys, time
from pathlib import Path
import torch
import training.loop
from evatok.workflows.train import STAGES, load_training

torch.set_num_threads(1)
path, folder, *overrides = sys.argv[1:]
config = load_training(Path(path), overrides)
stage = STAGES[config.stage].build(config)
sides = [stage.model] + ([] if stage.adversary is None else [stage.adversary])
before = [[p.detach().clone() for p in side.parameters()] for side in sides]
training.loop.checkpoint.save = lambda *args, **kwargs: None
start = time.perf_counter()
training.loop.train(stage, config.train, Path(folder))
seconds = time.perf_counter() - start
for side, old in zip(sides, before):
    changed = sum(not torch.equal(a, b) for a, b in zip(old, side.parameters()))
    # the last projections of layers start at 0: in the first step nothing reaches those before
    assert changed > len(old) // 4, f"{changed} of {len(old)} parameters of {type(side)} changed"
log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
terms = next(row for row in log if row["kind"] == "train")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "terms": sorted(terms)}))
"""

# A router's table and a generator's shards would be made up anyway: their models take the step.
OTHER = """
import json, resource, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from evatok.plan.untrained import model_of
from evatok.workflows.train import load_training
from tokenizer.router import Router
from training.optimization.optimizer import build_optimizers
from evatok.core.compute.precision import fast_float32_matmul

torch.set_num_threads(1)
config = load_training(Path(sys.argv[1]))
torch.manual_seed(0)
model = model_of(config).train()
optimizers = build_optimizers(model, config.train.optimizer)
before = [p.detach().clone() for p in model.parameters()]
start = time.perf_counter()
with fast_float32_matmul(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
    if isinstance(model, Router):
        clips = torch.rand(1, 3, 16, 128, 128) * 2 - 1
        loss = F.cross_entropy(model(clips).float(), torch.tensor([7]))
    else:
        length = round(config.expect.mean_length)
        first = model.frames.num_tokens if model.frames and config.frame_share == 1 else 1
        ids = torch.randint(model.vocabulary.codebook_size, (length,))
        bounds = torch.tensor([0, length], dtype=torch.int32)
        logits = model(ids, bounds, torch.arange(first - 1, length - 1))
        loss = F.cross_entropy(logits.float(), ids[first:])
loss.backward()
for optimizer in optimizers:
    optimizer.step()
seconds = time.perf_counter() - start
assert torch.isfinite(loss)
assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())) > len(before) // 2
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "terms": ["loss"]}))
"""


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
    settings = read_yaml(ROOT / "configs" / "ucf101" / "router.yaml")["model"]
    Router(RouterConfig.model_validate(settings)).save_pretrained(folder / "router")
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
        "adversarial.start_step=0",
        f"loss.perceptual.path={folder / 'vgg16.safetensors'}",
        f"alignment.path={folder / 'vjepa2'}",
    ]
    if settings.get("router") is not None:
        changes.append(f"router={folder / 'router'}")
    if settings["adversarial"]["discriminator"]["kind"] == "semantic":
        changes.append(f"adversarial.discriminator.path={folder / 'videomae'}")
    return changes


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_one_step(
    path: Path, stand_ins: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    settings = read_yaml(path)
    command = [sys.executable, "-c", OTHER, str(path)]
    expected = {"loss"}
    if settings["stage"] in TOKENIZERS:
        command = [sys.executable, "-c", TOKENIZER, str(path), str(tmp_path / "run")]
        command += overrides_of(path, stand_ins)
        expected |= {"l1", "codebook", "commitment", "entropy", "adversarial", "lpips"}
        if settings["alignment"]["weight"]:
            expected.add("alignment")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    print(f"{row['seconds']:.1f} s, {row['peak'] / 1024**3:.2f} GiB")
    assert expected <= set(row["terms"])
    assert row["peak"] < LIMIT
    for name, value in row.items():
        record_property(name, value)
