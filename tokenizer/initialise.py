"""Starting a tokenizer from data: patch layers from a PCA, codes from encoder outputs.

A Q-Former that starts from noise first has to find out what a patch is; on a small compute budget
it never gets further. Starting the patch layers as principal components, and the codebook on what
the encoder really says, costs seconds and saves hours (measured: see docs/results/gate.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.masks import ClipGroups
from tokenizer.model import VideoTokenizer


@torch.no_grad()
def initialise_patches(model: VideoTokenizer, clips: Tensor) -> None:
    """Set the patch layers and the code maps from principal components of patches.

    Components enter with the square root of their standard deviation, between raw (the mean
    colour drowns everything) and whitened (noise counts as much as content).

    Args:
        model: changed in place.
        clips: (B, 3, F, H, W) in [−1, 1], some hundred patches at least.
    """
    x = model.patches(clips).flatten(0, 1).double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(1e-8), vectors.flip(1)  # largest first
    scale = values.pow(-0.25)  # 1 / sqrt(std)
    scale = scale / (values.sqrt().mean().sqrt())  # unit variance on average

    def put(linear: torch.nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
        linear.weight.zero_()
        rows, columns = (min(a, b) for a, b in zip(linear.weight.shape, weight.shape, strict=True))
        linear.weight[:rows, :columns] = weight[:rows, :columns].float()
        linear.bias.zero_()
        if bias is not None:
            linear.bias[: len(bias)] = bias[: len(linear.bias)].float()

    encode = (vectors * scale).T  # (components, voxels)
    put(model.patch_in, encode, -(encode @ mean))
    # The decoder's last norm gives vectors of length √D: read them as the leading components.
    spread = values.sqrt().sqrt()
    put(model.patch_head, vectors * spread * 0.5, mean)
    eye = torch.eye(max(model.code_in.in_features, model.code_out.out_features))
    put(model.code_in, eye, None)
    put(model.code_out, eye, None)
    model.code_out.weight *= 2.0


@torch.no_grad()
def initialise_codes(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, generator: torch.Generator
) -> None:
    """Put the codebook on random encoder outputs of these clips."""
    z = F.normalize(model._encode(clips, ClipGroups.of(assignment)).float(), dim=-1)
    book = model.quantizer.codebook
    pick = torch.randint(len(z), (len(book),), generator=generator)
    noise = torch.randn(book.shape, generator=generator) * 0.01
    book.copy_(F.normalize(z[pick.to(z.device)] + noise.to(z.device), dim=-1))
