"""Reconstruction quality: PSNR, PSNR where the clip moves, SSIM, flicker.

Clips are (B, 3, F, H, W) in [-1, 1]; reconstructions are expected to be clamped to that range.
Everything is computed on [0, 1], the range of the literature: SSIM is not the same on [-1, 1].

PSNR of many clips depends on where the mean is taken, and papers differ:
- `psnr`: mean over clips of the PSNR of a clip (LARP, AdapTok; the one meant without a word);
- `psnr_frame`: mean over frames of the PSNR of a frame (the convention for images);
- `psnr_pooled`: PSNR of the mean squared error of everything (torchmetrics over a dataset).
Where clips have one length psnr_pooled ≤ psnr ≤ psnr_frame, by Jensen's inequality. Equal clips
have no squared error: each value is capped at 100 dB, which stands for an error of 1e-10, before it
enters a mean.

`moving_psnr` is the PSNR of the pixels in which the clip moves (`moving`), all frames of a clip
together; its mean is over the clips in which something moves.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.perceptual.distance import PerceptualDistance
from evatok.core.errors import EvatokError
from evatok.core.extras import extra

PSNR_CAP = 100.0  # dB
SSIM_WINDOW = 11  # pixels: the Gaussian of σ = 1.5, cut at 3.5 σ
RANGE_SLACK = 1e-3
MOTION = 0.2  # change of a channel on [-1, 1] from frame to frame above which a pixel moves
REACH = 2  # pixels by which what moves is widened to all sides, corners included


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB of each clip, (B,) float64, at most `PSNR_CAP`."""
    return _decibel(_squared_error(*_unit_pair(x, y)).mean((1, 2, 3, 4)))


def psnr_frame(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB of each frame, (B, F) float64, at most `PSNR_CAP`."""
    return _decibel(_squared_error(*_unit_pair(x, y)).mean((1, 3, 4)))


def psnr_pooled(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of all clips taken as one, at most `PSNR_CAP`."""
    return float(_decibel(_squared_error(*_unit_pair(x, y)).mean()))


def moving(clips: Tensor) -> Tensor:
    """Mask of the pixels that move.

    A pixel of frame f moves if, within `REACH` rows and columns of it, any channel differs by more
    than `MOTION` from frame f − 1. The first frame has none before it: there the change to the
    second one counts.

    Args:
        clips: (B, 3, F, H, W) float in [-1, 1].

    Returns:
        (B, F, H, W) bool; all False for clips of one frame.
    """
    if clips.shape[2] < 2:
        return torch.zeros(clips[:, 0].shape, dtype=torch.bool, device=clips.device)
    change = clips.float().diff(dim=2).abs().amax(1) > MOTION  # (B, F - 1, H, W)
    return _widened(_widened(torch.cat([change[:, :1], change], 1), 2), 3)


def _widened(mask: Tensor, axis: int) -> Tensor:
    """True where a mask is true within `REACH` places along an axis."""
    out = mask.clone()
    for step in range(1, min(REACH, mask.shape[axis] - 1) + 1):
        kept = mask.shape[axis] - step
        out.narrow(axis, step, kept).logical_or_(mask.narrow(axis, 0, kept))
        out.narrow(axis, 0, kept).logical_or_(mask.narrow(axis, step, kept))
    return out


def moving_psnr(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB where the clip `y` moves, (B,) float64, at most `PSNR_CAP`.

    The mean squared error over the moving pixels of all frames and their three channels. NaN for
    a clip in which nothing moves.
    """
    mask = moving(y)[:, None]
    error = (_squared_error(*_unit_pair(x, y)) * mask).sum((1, 2, 3, 4))
    return _decibel(error / (3 * mask.sum((1, 2, 3, 4))))


def mean_where_moving(values: Tensor) -> float | None:
    """The mean of `moving_psnr` over the clips in which something moves, None without any."""
    mean = float(values.nanmean())
    return None if mean != mean else mean


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each clip, (B,) float64: the mean over its frames.

    Gaussian window of 11 × 11 with σ = 1.5, k₁ = 0.01, k₂ = 0.03, mean over the whole map (the
    implementation of torchmetrics). Frames are compared one by one, never as a volume. In float32,
    as there: where frames are flat the last digit kept is the fourth.
    """
    if min(x.shape[-2:]) < SSIM_WINDOW:
        raise EvatokError(
            f"SSIM looks at windows of {SSIM_WINDOW} × {SSIM_WINDOW} pixels; frames are "
            f"{x.shape[-2]} × {x.shape[-1]}"
        )
    with extra("evaluation"):
        from torchmetrics.functional.image import structural_similarity_index_measure
    x, y = _unit_pair(x, y)
    batch = len(x)
    x, y = (clips.float().transpose(1, 2).flatten(0, 1) for clips in (x, y))  # (B F, 3, H, W)
    values = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor), "only the full image makes a tuple of it"
    return values.double().view(batch, -1).mean(1)


def flicker(x: Tensor, y: Tensor) -> Tensor:
    """Difference of the changes in time of two clips, (B,) float64.

    The mean of |(x_{f+1} − x_f) − (y_{f+1} − y_f)| over pixels and pairs of frames, as a share of
    the range. An error that stays the same in all frames, such as blur of a still scene, costs
    nothing; noise that is new in each frame costs most.
    """
    if x.shape[2] < 2:
        raise EvatokError("flicker needs 2 frames or more")
    x, y = _unit_pair(x, y)
    return (x - y).double().diff(dim=2).abs().mean((1, 2, 3, 4))


class Quality:
    """Means over many batches of reconstructions, under the names at the head of this file."""

    def __init__(self, perceptual: PerceptualDistance | None = None) -> None:
        """Measure `perceptual` too, under its own name, where it is given."""
        self.perceptual = perceptual
        self.clips: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "flicker": []}
        self.moving: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.error, self.count = 0.0, 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in reconstructions and their clips, both (B, 3, F, H, W) in [-1, 1]."""
        error = _squared_error(*_unit_pair(x, y))
        self.error += float(error.sum())
        self.count += error.numel()
        self.clips["psnr"].append(_decibel(error.mean((1, 2, 3, 4))).cpu())
        self.clips["ssim"].append(ssim(x, y).cpu())
        if x.shape[2] > 1:
            self.clips["flicker"].append(flicker(x, y).cpu())
        self.moving.append(moving_psnr(x, y).cpu())
        self.frames.append(_decibel(error.mean((1, 3, 4))).flatten().cpu())
        if self.perceptual is not None:
            with torch.no_grad():
                seen = self.perceptual(x, y).double().cpu()
            self.clips.setdefault(self.perceptual.name, []).append(seen)

    def merge(self, other: Quality) -> None:
        """Take in all that another has measured."""
        self.error += other.error
        self.count += other.count
        self.frames += other.frames
        for name, parts in other.clips.items():
            self.clips.setdefault(name, []).extend(parts)

    def compute(self) -> dict[str, float]:
        """psnr, psnr_frame, psnr_pooled, moving_psnr (dB), ssim, flicker, num_clips; the distance.

        Clips of a single frame have no flicker, clips in which nothing moves no moving_psnr: they
        do not count there, and where all are such the name is absent.
        """
        if not self.frames:
            raise EvatokError("no clips were given to measure")
        values = {name: torch.cat(parts) for name, parts in self.clips.items() if parts}
        moved = mean_where_moving(torch.cat(self.moving))
        pooled = _decibel(torch.tensor(self.error / self.count, dtype=torch.float64))
        return {
            **{name: float(value.mean()) for name, value in values.items()},
            **({} if moved is None else {"moving_psnr": moved}),
            "psnr_frame": float(torch.cat(self.frames).mean()),
            "psnr_pooled": float(pooled),
            "num_clips": len(values["psnr"]),
        }


def _unit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in [0, 1], float32 or better; refuses clips that do not match or are out of range."""
    if x.shape != y.shape or x.ndim != 5:
        raise EvatokError(
            f"clips to compare are (B, 3, F, H, W) alike, not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    for clips in (x, y):
        if not bool(clips.abs().max() <= 1 + RANGE_SLACK):  # also when it is NaN
            raise EvatokError(
                f"clips reach from {float(clips.min()):.4g} to {float(clips.max()):.4g}; "
                "they must be clamped to [-1, 1]"
            )
    x, y = (clips if clips.dtype == torch.float64 else clips.float() for clips in (x, y))
    return (x + 1) / 2, (y + 1) / 2


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).double().square()


def _decibel(error: Tensor) -> Tensor:
    """PSNR of mean squared errors on [0, 1], capped."""
    return (-10 * error.log10()).clamp_max(PSNR_CAP)
