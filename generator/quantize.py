"""Linear layers with 8-bit weights for decoding on a CPU.

Weights are rounded once, symmetrically, with one scale for each output; activations are rounded in
each step with one scale for all of them (PyTorch's dynamic quantisation). A decode step reads every
weight, so a quarter of the bytes is nearly a quarter of the time.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from generator.gpt import GPT


def int8(gpt: GPT) -> GPT:
    """A copy for sampling whose linear layers, head included, hold 8-bit weights.

    Args:
        gpt: on a CPU, any float type; is left as it is.

    Returns:
        In eval mode, the rest in float32; it cannot be trained or saved as a model.

    Raises:
        ValueError: the model is on another device.
    """
    device = gpt.embedding.weight.device
    if device.type != "cpu":
        raise ValueError(f"8-bit weights are for a CPU, and the model is on {device}")
    out = copy.deepcopy(gpt).float().eval()
    with warnings.catch_warnings():
        # PyTorch moves its quantisation to another package; the kernels behind it stay
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(out, {nn.Linear}, torch.qint8, inplace=True)
    return out
