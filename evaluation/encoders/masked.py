"""Training of the tiny VideoMAE: predict the hidden patches of a clip (Tong et al. 2022).

The nano stand-in for the frozen VideoMAE-B of the paper's recipe: the same class of Transformers,
the same objective, trained here on arcade videos (and real ones where they are at hand). The mask
is a tube: the same nine tenths of the places are hidden in all frames, so that nothing can be
copied from the frame before. Only the encoder is kept.

Judge it by `masked_loss` on held-out clips (with normalised targets, predicting nothing but means
costs the share of patches that are not flat, at most 1) and by a linear probe of its averaged
features on the class of the video, beside that of an untrained encoder and of pixels.

Shape letters: B batch, F frames, H W pixels, N tokens.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from evaluation.encoders.transformer import normalise, transformers
from evaluation.encoders.videomae import VideoMAEEncoder
from evaluation.metrics.linear_probe import linear_probe, mean_features, pixel_features
from evatok.core.config import Config, Depth, Frames, Heads, PixelCount, TrainConfig, Width
from evatok.core.errors import EvatokError
from training.stage import StageBase, Validation
from video.clips import sides
from video.dataset import ClipSampler, DataConfig

VALIDATION_BATCH = 32


class TinyConfig(Config):
    """Sizes of the encoder, and of the decoder that only training needs."""

    tubelet: Frames = 2  # frames of a patch
    patch: PixelCount = 8  # its rows and columns
    width: Width = 160
    layers: Depth = 4
    heads: Heads = 5
    decoder_width: Width = 64
    decoder_layers: Depth = 2
    decoder_heads: Heads = 1


class MaskedConfig(Config):
    """The training, configs/nano/videomae.yaml."""

    stage: Literal["videomae"]
    data: DataConfig
    model: TinyConfig = TinyConfig()
    mask_ratio: float = Field(default=0.9, gt=0, lt=1)
    # Each target patch by its own mean and deviation (the paper), or plain pixels in [0, 1].
    normalise_targets: bool = True
    validation_clips: int = Field(default=240, ge=1)
    probe_clips: int = Field(default=480, ge=2)  # training clips that the probe learns from
    train: TrainConfig


def masked_model(config: MaskedConfig) -> nn.Module:
    """Transformers' `VideoMAEForPreTraining` of these sizes, with fresh weights."""
    data, m, package = config.data, config.model, transformers()
    if not isinstance(data.size, int):
        raise EvatokError(f"data.size {list(data.size)}: this network sees squares: one number")
    for name, total, part in (
        ("num_frames", data.num_frames, m.tubelet),
        ("size", data.size, m.patch),
    ):
        if total % part:
            raise EvatokError(f"data.{name} {total} is not divisible by the patch's {part}")
    settings = package.VideoMAEConfig(
        image_size=data.size,
        patch_size=m.patch,
        num_frames=data.num_frames,
        tubelet_size=m.tubelet,
        hidden_size=m.width,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        intermediate_size=4 * m.width,
        use_mean_pooling=False,  # a final norm, as VideoMAE-B has
        decoder_hidden_size=m.decoder_width,
        decoder_num_hidden_layers=m.decoder_layers,
        decoder_num_attention_heads=m.decoder_heads,
        decoder_intermediate_size=4 * m.decoder_width,
        norm_pix_loss=config.normalise_targets,
        # On a CPU a third faster, forward and backward, than the fused one with so few tokens.
        attn_implementation="eager",
    )
    model: Any = package.VideoMAEForPreTraining(settings)
    model.looked_up = ("videomae.embeddings",)
    model.output_layers = ("decoder.head",)
    return model


def tube_masks(
    rows: int, grid: tuple[int, int, int], ratio: float, generator: torch.Generator
) -> Tensor:
    """Which tokens are hidden: the same places at all times, as many in every row.

    Args:
        rows: B.
        grid: times, rows and columns of tokens.
        ratio: share that is hidden, rounded down to whole places.
        generator: on the CPU.

    Returns:
        (B, N) bool, True = hidden.
    """
    times, places = grid[0], grid[1] * grid[2]
    hidden = int(ratio * places)
    if not 0 < hidden < places:
        raise EvatokError(f"mask_ratio {ratio} hides {hidden} of {places} places")
    order = torch.rand(rows, places, generator=generator).argsort(1)
    mask = torch.zeros(rows, places, dtype=torch.bool)
    mask.scatter_(1, order[:, :hidden], True)
    return mask.repeat(1, times)


class MaskedStage(StageBase):
    """Trains a tiny VideoMAE."""

    def __init__(self, config: MaskedConfig) -> None:
        self.config = config
        self.train_clips = ClipSampler(config.data, "train")
        self.test_clips = ClipSampler(config.data, "test")
        self.model = self._fresh()
        data, m = config.data, config.model
        (rows, columns) = (side // m.patch for side in sides(data.size))
        self.grid = (data.num_frames // m.tubelet, rows, columns)
        self._baselines: dict[str, float] | None = None

    def _fresh(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            return masked_model(self.config)

    def _masks(self, rows: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + step)
        return tube_masks(rows, self.grid, self.config.mask_ratio, generator)

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) and masks (B, N)."""
        train = self.config.train
        clips, _, _ = self.train_clips.batch(step, train.batch_size, train.seed, rank, world)
        return clips, self._masks(train.batch_size, step)[rank::world]

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the hidden patches."""
        clips, masks = batch
        loss = model(normalise(clips).transpose(1, 2), bool_masked_pos=masks).loss
        return loss, {"masked_loss": loss.detach()}

    def exported(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        inner: Any = model
        return inner.videomae

    def validate(self, model: nn.Module, step: int) -> Validation:
        """Loss on held-out clips under fixed masks, and the probes."""
        config = self.config
        clips, labels = self.test_clips.load(self.test_clips.eval_clips(config.validation_clips))
        device = next(model.parameters()).device
        masks, total = self._masks(len(clips), -1), 0.0
        for some, mask in zip(
            clips.split(VALIDATION_BATCH), masks.split(VALIDATION_BATCH), strict=True
        ):
            loss, _ = self.loss(model, (some.to(device), mask.to(device)), torch.Generator())
            total += float(loss) * len(some)
        scalars = {"masked_loss": total / len(clips)}
        if self.test_clips.class_names != self.train_clips.class_names or min(labels) < 0:
            return Validation(scalars)  # no classes, no probe
        wanted = self.train_clips.eval_clips(config.probe_clips)
        learn, learn_labels = self.train_clips.load(wanted)

        def probe(features: Any) -> float:
            return linear_probe(features(learn), learn_labels, features(clips), labels)

        if self._baselines is None:
            untrained = self._encoder(self._fresh(), device)
            self._baselines = {
                "probe_pixels": probe(pixel_features),
                "probe_untrained": probe(untrained),
            }
        scalars["probe"] = probe(self._encoder(model, device))
        return Validation(scalars | self._baselines)

    def _encoder(self, model: nn.Module, device: torch.device) -> Any:
        """Clips to averaged features of the last layer, with a frozen copy of the model's."""
        encoder = VideoMAEEncoder("videomae-nano", copy.deepcopy(self.exported(model)))
        return lambda clips: mean_features(encoder, clips.to(device), encoder.num_layers)
