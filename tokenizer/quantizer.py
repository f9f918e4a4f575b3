"""Vector quantization with l2-normalised low-dimensional codes, and a codebook that stays alive.

Straight-through gradients, codebook and commitment losses (β = 0.25), the LFQ entropy term
(method sections 2.4 and 3). Everything here runs in float32, whatever autocast says: a bf16
nearest-neighbour search picks wrong codes.

Shape letters: L packed tokens, D code width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evatok.core.processes.distributed import (
    num_processes,
    pick_of_all,
    size_of_all,
    sum_over_processes,
)
from tokenizer.cpu import quantizer as cpu_quantizer
from training.compilation import any_length, compiled

# unit (L, D), book (K, D), τ → ids, sum of entropies, sum of soft assignments
Search = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


@dataclass
class Quantized:
    """Output of the quantizer.

    Attributes:
        codes: (L, D) float32, unit length, with the straight-through gradient.
        ids: (L,) int64 in [0, K).
        unit: (L, D) float32, the normalised input.
        codebook_loss: scalar, squared distance (a sum over D), mean over tokens; moves the codes.
        commitment_loss: the same value; moves the encoder.
        entropy_loss: scalar, mean entropy a token − entropy of the batch mean, in nats.

    In training with several processes "mean" is over the tokens of all: the losses' mean over
    processes, and its gradient, are those of one process with the whole batch, although processes
    hold different numbers of tokens.
    """

    codes: Tensor
    ids: Tensor
    unit: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor


def _search(
    z: Tensor, codebook: Tensor, temperature: float, cpu_search: Search | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Per-token part of `VectorQuantizer.forward`, in one piece for the compiler.

    With `cpu_search`, that does what reads the whole codebook.

    Returns:
        unit (L, D), its codes (L, D) and ids (L,); the sums over tokens of squared distances, with
        the gradient of the codes and of unit; and, with a temperature, the sum over tokens of the
        entropy of their soft assignments, and the sum (K,) of these assignments.
    """
    unit = F.normalize(z.float(), dim=-1)
    book = F.normalize(codebook.float(), dim=-1)
    entropies = use = None
    if temperature > 0 and cpu_search is not None:
        ids, entropies, use = cpu_search(unit, book, temperature)
    else:
        cosine = unit @ book.T  # (L, K)
        ids = cosine.argmax(-1)
        if temperature > 0:
            # squared distance of unit vectors is 2 − 2 cos: softmax(−d / τ)
            log_p = F.log_softmax(cosine * (2 / temperature), -1)
            p = log_p.exp()
            entropies, use = -(p * log_p).sum(), p.sum(0)
    codes = book[ids]
    of_codes = (codes - unit.detach()).square().sum()
    of_unit = (codes.detach() - unit).square().sum()
    return unit, codes, ids, of_codes, of_unit, entropies, use


class VectorQuantizer(nn.Module):
    """K unit vectors; nearest in cosine."""

    looked_up = ("codebook",)
    usage: Tensor

    def __init__(self, codebook_size: int, code_dim: int, entropy_temperature: float) -> None:
        super().__init__()
        self.entropy_temperature = entropy_temperature
        self.is_compiled = False  # while it trains
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, code_dim), dim=-1))
        # Decayed share of the batch that each code won: what `restart_dead_codes` decides by.
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))

    def nearest(self, unit: Tensor) -> Tensor:
        """Ids (L,) int64 of the codes nearest to unit vectors (L, D) float32."""
        with torch.autocast(unit.device.type, enabled=False):
            return (unit.float() @ F.normalize(self.codebook.float(), dim=-1).T).argmax(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Unit codes (..., D) float32 of ids (...)."""
        return F.normalize(self.codebook.float(), dim=-1)[ids]

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (L, D), any float dtype and any length of vector."""
        with torch.autocast(z.device.type, enabled=False):
            learns = self.training and self.codebook.requires_grad
            temperature = self.entropy_temperature if learns else 0.0
            arguments = (z, self.codebook, temperature)
            if self.is_compiled and self.training and cpu_quantizer.is_for(self.codebook):
                found = _search(*arguments, cpu_quantizer.search)
            elif self.is_compiled and self.training:
                any_length(0, z)
                found = compiled(_search)(*arguments)
            else:
                found = _search(*arguments)
            unit, codes, ids, distance_of_codes, distance_of_unit, entropies, use = found
            share, total = 1.0, len(z)  # of this process's tokens, times the processes
            if self.training and num_processes() > 1:  # validation is one process's affair
                total = int(sum_over_processes(torch.tensor(len(z), device=z.device)))
                share = num_processes() * len(z) / total
            entropy = torch.zeros((), device=z.device)
            if entropies is not None and use is not None:
                mean = (use if total == len(z) else sum_over_processes(use)) / total
                per_token = entropies / len(z) * share
                entropy = per_token + (mean * (mean + 1e-5).log()).sum()
            return Quantized(
                codes=unit + (codes - unit).detach(),
                ids=ids,
                unit=unit,
                codebook_loss=distance_of_codes / len(z) * share,
                commitment_loss=distance_of_unit / len(z) * share,
                entropy_loss=entropy,
            )

    @torch.no_grad()
    def update_usage(self, ids: Tensor, decay: float) -> None:
        """Fold the use of a step's ids (L,), those of all processes, into the decayed usage."""
        counts = torch.bincount(ids, minlength=len(self.codebook)).to(self.usage.dtype)
        counts = sum_over_processes(counts)
        self.usage.lerp_(counts / counts.sum(), 1 - decay)

    @torch.no_grad()
    def restart_dead_codes(
        self,
        unit: Tensor,
        threshold: float,
        generator: torch.Generator,
        lengths: Tensor | None = None,
    ) -> int:
        """Put codes that almost nothing chooses onto inputs of this step.

        Args:
            unit: (L, D) normalised inputs of this process.
            threshold: a code whose usage is under threshold / K is dead.
            generator: picks the inputs, among those of all processes; equal on all of them.
            lengths: (B,) int64 inputs of each clip of this process; one clip by default.

        Returns:
            How many codes moved.
        """
        dead = (self.usage < threshold / len(self.codebook)).nonzero().flatten()
        if len(dead):
            if lengths is None:
                lengths = torch.tensor([len(unit)], device=unit.device)
            total = size_of_all(len(unit), unit.device)
            pick = torch.randint(total, (len(dead),), generator=generator).to(unit.device)
            self.codebook[dead] = pick_of_all(unit, lengths, pick).to(self.codebook.dtype)
            self.usage[dead] = 1.0 / len(self.codebook)
        return len(dead)
