"""One real optimisation step of the paper's models at batch 1, in bf16, each in its own process.

The models and the basic losses only: no discriminator, no network that only a loss uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 20 * 1024**3  # bytes
TRAININGS = ("proxy", "router", "final", "generator")
PATHS = [
    path
    for family in ("webvid", "ucf101", "k600")
    for path in sorted((ROOT / "configs" / family).glob("*.yaml"))
    if read_yaml(path).get("stage") in TRAININGS
]

# Peak memory belongs to a process, so that every step gets one. A step, not a metric: where no real
# clip is at hand its pixels are random, and so are the generator's tokens.
STEP = """
import json, resource, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from evatok.info import model_of
from evatok.stages import load_training
from tokenizer.losses import tokenizer_loss
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from training.optimizer import build_optimizers
from training.precision import fast_float32
from video.clips import to_clip
from video.io import read_frames

config = load_training(Path(sys.argv[1]))
torch.manual_seed(0)
model = model_of(config).train()
optimizers = build_optimizers(model, config.train.optimizer)
before = [p.detach().clone() for p in model.parameters()]
files = sorted(Path("../shared/data").glob("ucf6/**/*.avi"))
clips = torch.rand(1, 3, 16, 128, 128) * 2 - 1
if files:
    clips = to_clip(read_frames(files[0], 0, 16, 128))[None]
start = time.perf_counter()
with fast_float32(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
    if isinstance(model, VideoTokenizer):
        uniform = getattr(config, "uniform", None)
        assignment = torch.tensor([[uniform] * 4 if uniform else [512, 128, 64, 64]])
        loss = tokenizer_loss(model(clips, assignment), clips, config.loss)[0]
    elif isinstance(model, Router):
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
changed = sum(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
assert torch.isfinite(loss) and changed > 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
row = {"loss": loss.item(), "seconds": seconds, "peak": peak, "real": bool(files)}
print(json.dumps(row))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_one_step(path: Path, record_property: Callable[[str, object], None]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", STEP, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    print(f"{row['seconds']:.1f} s, {row['peak'] / 1024**3:.2f} GiB")
    for name, value in row.items():
        record_property(name, value)
    assert row["peak"] < LIMIT
