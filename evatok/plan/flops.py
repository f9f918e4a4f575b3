"""Floating-point operations of the models, counted from their shapes.

A multiplication and an addition count as two; only matrix products count. Attention of the
tokenizer counts the pairs that its block-causal masks let through; that of the GPT whole squares,
as is the custom. A training step costs three forward passes, less where no gradient is wanted.

Shape letters: T blocks, N 3D positions of a block, Q queries, D width, K codebook size, S length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from generator.gpt import GPT
from tokenizer.model import VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router


def _layers(size: QFormerConfig, queries: int, references: int, own: int, seen: int) -> int:
    """Q-Former layers: `queries` and new `references`, (own, seen) places that each query sees."""
    width = size.width
    rows = queries * 14 * width**2  # qkv, out, cross q, cross out, MLP
    keys = references * 2 * width**2
    return size.layers * (2 * (rows + keys) + 4 * width * queries * (own + seen))


def block_flops(model: VideoTokenizer, prefix: Sequence[int], *, has_entropy: bool) -> Counter[str]:
    """Forward and backward of the last block of a prefix, in a clip of its own batch.

    Block t depends on blocks ≤ t only, so the cost of a clip is the sum over its prefixes.

    Args:
        model: for its shapes; on any device.
        prefix: token counts of the blocks so far, this one last.
        has_entropy: whether the entropy loss is trained, which sends gradient to the codebook's
            whole similarity table.

    Returns:
        "forward/PART" and "train/PART" for patches, encoder, quantizer, decoder.
    """
    config, cells = model.config, model.num_cells
    tokens, seen_tokens, seen_cells = prefix[-1], sum(prefix), len(prefix) * cells
    enc, dec = config.encoder.width, config.decoder.width
    voxels = 3 * config.patch[0] * config.patch[1] * config.patch[2]
    # The places of all levels are pooled once a batch, and left out.
    pools = 2 * tokens * cells * enc
    spread = 2 * tokens * cells * dec
    codes = 2 * tokens * config.code_dim * (enc + dec)
    table = 2 * tokens * config.codebook_size * config.code_dim
    patch = 2 * cells * voxels * enc
    encoder = 2 * tokens * enc**2 + _layers(config.encoder, tokens, cells, seen_tokens, seen_cells)
    decoder = (
        2 * cells * dec**2
        + _layers(config.decoder, cells, tokens, seen_cells, seen_tokens)
        + 2 * cells * dec * voxels
    )
    return Counter(
        {
            "forward/patches": patch,
            "forward/encoder": encoder + pools,
            "forward/quantizer": codes + table,
            "forward/decoder": decoder + spread,
            "train/patches": 2 * patch,  # pixels get no gradient
            "train/encoder": 3 * encoder + 2 * pools,  # nor do means
            "train/quantizer": 3 * codes + (3 if has_entropy else 1) * table,
            "train/decoder": 3 * decoder + 2 * spread,
        }
    )


def clip_flops(
    model: VideoTokenizer, assignment: Sequence[int], *, has_entropy: bool = True
) -> Counter[str]:
    """As `block_flops`, of a whole clip."""
    total: Counter[str] = Counter()
    for t in range(len(assignment)):
        total.update(block_flops(model, assignment[: t + 1], has_entropy=has_entropy))
    return total


def prefix_shares(model: VideoTokenizer, candidates: int | None = None) -> list[float]:
    """Expected shares of the search's prefixes of 1, 2 … T blocks that are walked.

    A prefix is, if any of the candidates that begin with it is among those drawn.

    Args:
        model: for its levels.
        candidates: how many are drawn; all if None.
    """
    blocks, total = model.num_blocks, model.levels.num_candidates(model.num_blocks)
    drawn = total if candidates is None else candidates
    sets = math.comb(total, drawn)
    ends = [len(model.levels) ** (blocks - depth) for depth in range(1, blocks + 1)]
    return [1 - math.comb(total - count, drawn) / sets for count in ends]


def search_flops(model: VideoTokenizer, candidates: int | None = None) -> int:
    """Forward of every block of the prefix tree of one clip: m + m² + … + m^T blocks.

    An upper bound: references are projected once a clip in the tree, counted once a block here.

    Args:
        model: for its shapes.
        candidates: how many the clip is searched for, expected of a random draw; all if None.
    """
    total = 0.0
    for depth, share in enumerate(prefix_shares(model, candidates), 1):
        for prefix in model.levels.candidates(depth).tolist():
            costs = block_flops(model, prefix, has_entropy=False)
            total += share * sum(v for name, v in costs.items() if name.startswith("forward/"))
    return round(total)


def router_flops(model: Router) -> Counter[str]:
    """Forward and training of one clip: "forward/router", "train/router"."""
    config, cells = model.config, model.position.shape[0]
    width, rows = config.width, cells + 1
    patch = 2 * cells * model.patch_in.in_features * width
    layers = config.layers * (2 * rows * 12 * width**2 + 4 * width * rows**2)
    head = 2 * width * model.head.out_features
    forward = patch + layers + head
    return Counter({"forward/router": forward, "train/router": 3 * forward - patch})


def sequence_flops(model: GPT, length: float, targets: float) -> Counter[str]:
    """Forward and training of one sequence: layers and head.

    Args:
        model: for its shapes.
        length: S, tokens of the sequence.
        targets: of them, those that are predicted.
    """
    size = model.size
    weights = 4 * size.width**2 + 3 * size.width * size.hidden
    layers = size.layers * (2 * length * weights + 4 * size.width * length**2)
    head = 2 * targets * size.width * model.vocabulary.size
    forward = {"layers": round(layers), "head": round(head)}
    return Counter(
        {f"forward/{name}": value for name, value in forward.items()}
        | {f"train/{name}": 3 * value for name, value in forward.items()}
    )
