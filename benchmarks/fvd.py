"""`evatok fvd` of two folders beside the usual program, from start to number, on the same weights.

    python -m benchmarks.fvd --features i3d --json

The usual program is written plainly, as most code for FVD is: decode every video, stack them all,
resize and run batch after batch (convolution, BatchNorm, ReLU apart, padding apart), then
`numpy.cov` and SciPy's `sqrtm`. Both get the same 2 × 256 small videos, which are made once and
kept in a temporary folder, and run in one process in turn with the same threads. Processor seconds
are told beside seconds, for machines that others use too.

Of ours also: the share of the network in its seconds, and how near the network comes to the
machine's peak, which is that of a product of float32 matrices. SciPy is no dependency: pip install
scipy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.frechet import usual_distance, usual_moments
from evaluation.encoders.base import FeatureNetwork
from evaluation.encoders.i3d.network import I3D, SIZE, Pool, Unit, same_padding
from evaluation.encoders.i3d.weights import read_weights
from evaluation.encoders.load import load_features
from evaluation.encoders.nano import NanoFeatures
from evaluation.scoring.clips import Cut
from evaluation.scoring.score import score_folders
from video.reading import read_frames
from video.writing import write_video

BATCH = 16
FRAMES, PIXELS = 20, 64  # of a video; 16 frames of it are scored


class PlainUnit(nn.Module):
    """Convolution, BatchNorm and ReLU, each by itself."""

    def __init__(self, unit: Unit, name: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.kernel, self.stride = unit.kernel, unit.stride
        outputs, inputs = unit.weight.shape[:2]
        self.conv = nn.Conv3d(inputs, outputs, unit.kernel, unit.stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)
        with torch.no_grad():
            self.conv.weight.copy_(weights[f"{name}.conv3d.weight"])
            self.bn.bias.copy_(weights[f"{name}.bn.bias"])
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        self.bn.running_mean.copy_(weights[f"{name}.bn.running_mean"])
        self.bn.running_var.copy_(weights[f"{name}.bn.running_var"])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H, W) → likewise."""
        return F.relu(self.bn(self.conv(_padded(x, (self.kernel,) * 3, (self.stride,) * 3))))


class PlainPool(nn.Module):
    """Padding, then max pooling."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.kernel, self.stride = pool.kernel, pool.stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H, W) → (B, C, F', H', W')."""
        return F.max_pool3d(_padded(x, self.kernel, self.stride), self.kernel, self.stride)


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    sizes = zip(x.shape[2:], kernel, stride, strict=True)
    pads = [same_padding(*size) for size in sizes]
    return F.pad(x, [p for pair in reversed(pads) for p in pair])


def plain_i3d() -> nn.Module:
    """The I3D with its layers apart."""
    weights = read_weights()
    model = I3D()
    for name, module in list(model.named_modules()):
        if isinstance(module, (Unit, Pool)):
            parent, _, leaf = name.rpartition(".")
            is_unit = isinstance(module, Unit)
            plain = PlainUnit(module, name, weights) if is_unit else PlainPool(module)
            setattr(model.get_submodule(parent), leaf, plain)
    with torch.no_grad():
        model.logits.weight.copy_(weights["logits.conv3d.weight"])
        assert model.logits.bias is not None
        model.logits.bias.copy_(weights["logits.conv3d.bias"])
    return model.eval()


@torch.no_grad()
def usual_features(folder: Path, network: Callable[[Tensor], Tensor], side: int) -> np.ndarray:
    """(N, D) of all videos of a folder, resized to a side."""
    videos = []
    for path in sorted(folder.iterdir()):
        videos.append(torch.from_numpy(np.asarray(read_frames(path, 0, 16))))
    clips = torch.stack(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (N, 3, F, H, W)
    rows = []
    for batch in clips.split(BATCH):
        frames = batch.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(
            frames, (side, side), mode="bilinear", align_corners=False, antialias=side == PIXELS
        )
        rows.append(network(frames.unflatten(0, (len(batch), 16)).transpose(1, 2)))
    return torch.cat(rows).numpy()


def usual_program(real: Path, fake: Path, network: Callable[[Tensor], Tensor], side: int) -> float:
    """The distance, the plain way."""
    features = [usual_features(folder, network, side) for folder in (real, fake)]
    return usual_distance(usual_moments(features[0]), usual_moments(features[1]))


class Timed:
    """A feature network that counts its seconds."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network, self.seconds = network, 0.0
        self.name, self.dim, self.checksum = network.name, network.dim, network.checksum

    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, D)."""
        start = time.perf_counter()
        out = self.network(clips)
        self.seconds += time.perf_counter() - start
        return out


def make_videos(count: int) -> tuple[Path, Path]:
    """Two folders of small videos; those that are there already are not made again."""
    root = Path(tempfile.gettempdir()) / f"evatok-benchmark-fvd-{PIXELS}-{FRAMES}"
    folders = (root / f"real-{count}", root / f"fake-{count}")
    for side, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / f"{number:04d}.mp4"
            if path.is_file():
                continue
            rng = np.random.default_rng((side, number))
            base = rng.integers(0, 200, (PIXELS // 8 + 3, PIXELS // 8, 3)).repeat(8, 0).repeat(8, 1)
            frames = np.stack([base[f : f + PIXELS] for f in range(FRAMES)])
            noise = rng.integers(0, 20 + 10 * side, frames.shape)
            write_video(path, (frames + noise).clip(0, 255).astype(np.uint8), 15)
    return folders


def peak(size: int = 2048) -> float:
    """Operations a second of a product of float32 matrices, the best of five."""
    a = torch.randn(size, size)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def clocked(run: Callable[[], float]) -> dict[str, float]:
    """The number, seconds and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    value = run()
    seconds = time.perf_counter() - wall
    return {"fvd": value, "seconds": seconds, "cpu_seconds": time.process_time() - processor}


def measure(features: str, count: int) -> dict[str, Any]:
    """Both programs once; JSON-able."""
    real, fake = make_videos(count)
    network = load_features(features)
    if features == "i3d":
        plain, side = plain_i3d(), SIZE
        shape = (1, 3, 16, SIZE, SIZE)
    else:
        assert isinstance(network, NanoFeatures), "the usual program is written for i3d and nano"
        plain, side, shape = network.net.features, PIXELS, (1, 3, 16, PIXELS, PIXELS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.zeros(shape))
    network(torch.zeros(2, *shape[1:]))
    timed, fastest = Timed(network), peak()
    cut = Cut(size=PIXELS)

    def ours() -> float:
        return score_folders(real, fake, [timed], cut=cut, biased=False)[f"fvd[{features}]"]

    results = {"ours": clocked(ours)}
    results["usual"] = clocked(lambda: usual_program(real, fake, plain, side))
    mine, theirs = results["ours"], results["usual"]
    rate = counter.get_total_flops() * 2 * count / timed.seconds
    return {
        "features": features,
        "videos": 2 * count,
        "threads": torch.get_num_threads(),
        **results,
        "ratio": theirs["seconds"] / mine["seconds"],
        "cpu_ratio": theirs["cpu_seconds"] / mine["cpu_seconds"],
        "relative_difference": abs(mine["fvd"] - theirs["fvd"]) / theirs["fvd"],
        "network_share": timed.seconds / mine["seconds"],
        "gflops_a_clip": counter.get_total_flops() / 1e9,
        "gflops_a_second": rate / 1e9,
        "peak_gflops_a_second": fastest / 1e9,
        "share_of_peak": rate / fastest,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", default="i3d", choices=("i3d", "nano"))
    parser.add_argument("--videos", type=int, default=256, help="of each folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer videos than features
        result = measure(arguments.features, arguments.videos)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
