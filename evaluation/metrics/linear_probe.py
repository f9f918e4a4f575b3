"""Linear probe: how much of a label can be read off features by a linear map.

It judges features without training a network: ridge regression onto the classes, in closed form,
so that two calls give the same number. Beside it the same of plain pixels, which features must
beat to be worth anything.

Shape letters: N, M clips, B batch, F frames, H W pixels, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.encoders.encoder import VideoEncoder
from evatok.core.errors import EvatokError


def linear_probe(
    features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, ridge: float = 0.1
) -> float:
    """Share of held-out rows whose class the regression finds.

    Features are standardised with the mean and deviation of the training rows, those that do not
    vary are left out. Ties go to the lower class.

    Args:
        features: (N, D) float.
        labels: (N,) int64, classes from 0.
        held_out: (M, D).
        held_out_labels: (M,).
        ridge: weight of the squared map, for a feature of variance 1, averaged over D.

    Raises:
        EvatokError: shapes do not fit, or there is nothing to learn from or to judge.
    """
    if features.ndim != 2 or held_out.ndim != 2 or features.shape[1] != held_out.shape[1]:
        raise EvatokError(
            f"features {tuple(features.shape)} and {tuple(held_out.shape)} are not (N, D), (M, D)"
        )
    if (len(labels), len(held_out_labels)) != (len(features), len(held_out)) or not len(held_out):
        raise EvatokError(
            f"{len(labels)} and {len(held_out_labels)} labels for {len(features)} and "
            f"{len(held_out)} rows"
        )
    if len(labels.unique()) < 2 or int(labels.min()) < 0:
        raise EvatokError("a probe needs two classes or more, numbered from 0")
    x, y = features.double(), held_out.double()
    mean, deviation = x.mean(0), x.std(0)
    varies = deviation > 1e-9 * deviation.max()
    x, y = ((z[:, varies] - mean[varies]) / deviation[varies] for z in (x, y))
    targets = F.one_hot(labels).double()
    # By products of rows, not of columns: pixels have far more columns than there are clips.
    dim = x.shape[1]
    penalty = ridge * len(x) * torch.eye(len(x), dtype=torch.float64)
    weights = torch.linalg.solve(x @ x.T / dim + penalty, targets - targets.mean(0))
    scores = y @ x.T / dim @ weights + targets.mean(0)
    return float((scores.argmax(1) == held_out_labels).double().mean())


@torch.no_grad()
def mean_features(encoder: VideoEncoder, clips: Tensor, layer: int, part: int = 16) -> Tensor:
    """(B, D) float32, on the CPU: features of a layer of an encoder, averaged over all places."""
    rows = [encoder.hidden(some, [layer])[0].float().mean((1, 2, 3)) for some in clips.split(part)]
    return torch.cat(rows).cpu()


def pixel_features(clips: Tensor, cells: tuple[int, int, int] = (2, 8, 8)) -> Tensor:
    """(B, 3 · cells) float32: clips (B, 3, F, H, W) shrunk to so many times, rows and columns."""
    return F.adaptive_avg_pool3d(clips.float(), cells).flatten(1)
