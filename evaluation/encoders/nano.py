"""The nano feature network: a small 3D convolutional net, trained here on arcade videos.

It stands in for I3D in quick experiments and tests: it is shipped with the package, takes
milliseconds a clip and sees 64 × 64 pixels. Its distances are written `fvd[nano]` and compare with
nothing else; those of the same net trained on 40 games are `fvd[games]`, and compare with nothing
else either: the name travels with the weights.

It learns to tell the games apart. Its features are what the classifier reads: how strong the
channels of every layer are, which shows lost detail as well as a wrong scene, and how much they
change from frame to frame, without which it would be blind to frozen or flickering videos, as games
can be told apart by their still pictures. Each feature is standardised over the training clips and
never clipped.

Shape letters: B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from evaluation.encoders.base import (
    OneByOne,
    resize_frames,
    weights_checksum,
)
from evatok.core.config import Config, TrainConfig, Width
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.loading.pretrained import FILES, Pretrained
from evatok.core.processes.distributed import num_processes, size_of_all, sum_over_processes
from training.stage import StageBase, Validation
from video.dataset import ClipSampler, DataConfig

SMOOTHING = 0.05  # of the labels
VALIDATION_BATCH = 32
SIZE = 64  # pixels; clips of another size are resized
PUBLISHED = ("i3d", "videomae", "vjepa")
MIN_FRAMES = 9  # fewer would leave the last layer one frame, in which nothing changes
WEIGHTS = Path(__file__).resolve().parent / "weights"
SHIPPED = WEIGHTS / "nano" / "features"


def checked_name(name: str) -> str:
    """The name of a network of ours, as it stands in FVD[name].

    Raises:
        EvatokError: it is a published network's, or not of small letters, digits and hyphens.
    """
    if name.startswith(PUBLISHED):
        raise EvatokError(f"a network of ours is not called {name!r}: a published one is")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
        raise EvatokError(f"name {name!r}: give small letters, digits and hyphens, 32 at most")
    return name


class NanoModelConfig(Config):
    """Sizes of the network, see `NanoNet`; about 330 k parameters as they stand."""

    widths: tuple[Width, ...] = (16, 48, 64, 96)
    dim: Width = 128
    name: str = "nano"  # what its distances are called: FVD[name]

    @field_validator("name")
    @classmethod
    def _is_ours(cls, name: str) -> str:
        return checked_name(name)


class FeaturesConfig(Config):
    """The feature network's training, configs/nano/features.yaml."""

    stage: Literal["features"]
    data: DataConfig
    model: NanoModelConfig = NanoModelConfig()
    train: TrainConfig


class _OverProcesses(_BatchNorm):
    """In training, statistics over the batches of all processes, on any device.

    PyTorch's `SyncBatchNorm` works on accelerators alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, …)."""
        if not self.training or num_processes() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = (1, -1, *(1,) * (input.dim() - 2))
        count = size_of_all(input.numel() // input.shape[1], input.device)
        mean = sum_over_processes(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        assert self.momentum and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for kept, new in (
                (self.running_mean, mean),
                (self.running_var, variance * (count / (count - 1))),
            ):
                assert kept is not None
                kept.lerp_(new.to(kept.dtype), self.momentum)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return out
        return out * self.weight.view(shape) + self.bias.view(shape)


class BatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    """Of (B, C)."""


class BatchNorm3d(_OverProcesses, nn.BatchNorm3d):
    """Of (B, C, F, H, W)."""


class NanoNet(nn.Module, Pretrained, pipeline_tag="feature-extraction"):
    """Clips (B, 3, F, 64, 64) in [-1, 1] to logits over games, by way of features (B, D).

    Args:
        class_names: what the logits stand for; travels in config.json.
        widths: channels of the convolutions, each of which halves height and width, and each but
            the first, which looks at single frames, their number.
        dim: D, the length of the feature vector.
        name: what its distances are called, FVD[name].
    """

    def __init__(
        self,
        class_names: Sequence[str],
        widths: Sequence[int] = (16, 48, 64, 96),
        dim: int = 128,
        name: str = "nano",
    ):
        super().__init__()
        self.class_names = list(class_names)
        self.name = checked_name(name)
        self.dim = dim
        ins = (3, *widths[:-1])
        self.layers = nn.ModuleList(
            _convolution(i, o, single_frames=n == 0)
            for n, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        # Neither learned nor per clip: each pooled value, then each feature, gets the mean 0 and
        # the variance 1 over the training clips, so that none of them drowns the others.
        self.balance = BatchNorm1d(2 * sum(widths), affine=False)
        self.project = nn.Linear(2 * sum(widths), dim, bias=False)
        self.standardise = BatchNorm1d(dim, affine=False)
        self.classify = nn.Linear(dim, len(self.class_names))

    def features(self, clips: Tensor) -> Tensor:
        """(B, D): how strong every channel of every layer is and how much it changes in time."""
        x, pooled = clips.contiguous(memory_format=torch.channels_last_3d), []
        for layer in self.layers:
            x = layer(x)
            # Root mean square: a mean of absolute changes stays the same where every second frame
            # is dropped and the changes between the others are twice as large.
            change = (x.diff(dim=2).square().mean((2, 3, 4)) + 1e-6).sqrt()
            pooled += [x.mean((2, 3, 4)), change]
        return self.standardise(self.project(self.balance(torch.cat(pooled, 1))))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, number of classes)."""
        return self.classify(self.features(clips))


def _convolution(ins: int, outs: int, *, single_frames: bool) -> nn.Sequential:
    kernel = (1, 5, 5) if single_frames else (3, 3, 3)
    return nn.Sequential(
        nn.Conv3d(
            ins,
            outs,
            kernel,
            stride=(1 if single_frames else 2, 2, 2),
            padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
            bias=False,
        ),
        BatchNorm3d(outs),
        nn.SiLU(),
    )


class NanoFeatures(OneByOne):
    """A trained `NanoNet` as a `FeatureNetwork`."""

    def __init__(self, net: NanoNet, device: str | torch.device = "cpu"):
        self.name = net.name
        self.net = net.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.dim = net.dim
        self.device = torch.device(device)
        self.checksum = weights_checksum(net.state_dict())

    def features(self, clips: Tensor) -> Tensor:
        """Features (B, D) of resized clips."""
        return self.net.features(resize_frames(clips, SIZE, antialias=True))


def load_nano(path: str | Path | None = None, device: str | torch.device = "cpu") -> NanoFeatures:
    """The shipped network, or one that was saved in the folder `path`.

    Raises FileNotFoundError where the folder has no weights.
    """
    folder = Path(path) if path is not None else SHIPPED
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingFileError(
                f"no nano feature network in {folder}: {name} is missing; train one with "
                "`evatok train configs/nano/features.yaml` or give the folder of another"
            )
    return NanoFeatures(NanoNet.from_pretrained(folder), device)


class FeaturesStage(StageBase):
    """Trains a `NanoNet` to tell classes of videos apart."""

    def __init__(self, config: FeaturesConfig):
        self.config = config
        self.train_clips = ClipSampler(config.data, "train")
        self.test_clips = ClipSampler(config.data, "test")
        if self.test_clips.class_names != self.train_clips.class_names:
            raise EvatokError("the training and the test videos do not have the same classes")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.model = NanoNet(self.train_clips.class_names, **config.model.model_dump())

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) and labels (B,)."""
        train = self.config.train
        clips, labels, _ = self.train_clips.batch(step, train.batch_size, train.seed, rank, world)
        return clips, labels

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, smoothed: the logits need not grow once the classes are told apart."""
        clips, labels = batch
        logits = model(clips)
        loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}

    def validate(self, model: nn.Module, step: int) -> Validation:
        """Accuracy and cross-entropy (unsmoothed) over the first clip of each held-out video."""
        windows = self.test_clips.eval_clips(window="first")
        device = next(model.parameters()).device
        losses, right = [], []
        for start in range(0, len(windows), VALIDATION_BATCH):
            clips, labels = self.test_clips.load(windows[start : start + VALIDATION_BATCH])
            logits = model(clips.to(device)).cpu()
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            right.append((logits.argmax(1) == labels).float())
        return Validation(
            {
                "accuracy": torch.cat(right).mean().item(),
                "cross_entropy": torch.cat(losses).mean().item(),
            }
        )
