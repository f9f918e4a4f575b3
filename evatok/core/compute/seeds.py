"""Random numbers as a function of the step: a resumed run needs no generator's state."""

from __future__ import annotations

import hashlib

import torch


def mixed_seed(seed: int, step: int, rank: int) -> int:
    """One seed out of three numbers, unrelated to that of their neighbours."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, which dropout draws from.

    Not torch.manual_seed: without CUDA that formats a stack trace at each call, 1 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
