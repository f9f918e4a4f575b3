"""Starting a network from data: patch layers from a PCA, codes from encoder outputs.

A transformer that starts from noise first has to find out what a patch is; on a small compute
budget it never gets further. Starting the patch layers as principal components, and the codebook
on what the encoder really says, costs seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router


class Components(NamedTuple):
    """Principal components of patches, largest first (float64).

    Attributes:
        mean: (V,) of all patches of V voxels.
        vectors: (V, V), a component a column.
        std: (V,) of each component.
    """

    mean: Tensor
    vectors: Tensor
    std: Tensor

    def encode(self) -> tuple[Tensor, Tensor]:
        """Weight (V, V) and bias (V,) of the layer patch → components.

        Components enter with the square root of their standard deviation, between raw (the mean
        colour drowns everything) and whitened (noise counts as much as content).
        """
        scale = self.std.rsqrt() / self.std.mean().sqrt()  # unit variance on average
        weight = (self.vectors * scale).T
        return weight, -(weight @ self.mean)


def components_of(patches: Tensor) -> Components:
    """Principal components of patches (N, V), some hundred at least."""
    x = patches.double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    return Components(mean, vectors.flip(1), values.flip(0).clamp_min(1e-8).sqrt())


def _put(linear: torch.nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Fill as much of a layer as the weight has, zeros elsewhere."""
    linear.weight.zero_()
    rows, columns = (min(a, b) for a, b in zip(linear.weight.shape, weight.shape, strict=True))
    linear.weight[:rows, :columns] = weight[:rows, :columns].float()
    linear.bias.zero_()
    if bias is not None:
        linear.bias[: len(bias)] = bias[: len(linear.bias)].float()


@torch.no_grad()
def initialise_router(model: Router, clips: Tensor) -> None:
    """Set the patch layer of a router from principal components of patches.

    Args:
        model: changed in place.
        clips: (B, 3, F, H, W) in [−1, 1], some hundred patches at least.
    """
    _put(model.patch_in, *components_of(model.patches(clips).flatten(0, 1)).encode())


@torch.no_grad()
def initialise_patches(model: VideoTokenizer, clips: Tensor) -> None:
    """Set the patch layers and the code maps from principal components of patches.

    Args:
        model: changed in place.
        clips: (B, 3, F, H, W) in [−1, 1], some hundred patches at least.
    """
    found = components_of(model.patches(clips).flatten(0, 1))
    _put(model.patch_in, *found.encode())
    # The decoder's last norm gives vectors of length √D: read them as the leading components.
    _put(model.patch_head, found.vectors * found.std.sqrt() * 0.5, found.mean)
    eye = torch.eye(max(model.code_in.in_features, model.code_out.out_features))
    _put(model.code_in, eye, None)
    _put(model.code_out, eye, None)
    model.code_out.weight *= 2.0


@torch.no_grad()
def initialise_codes(
    model: VideoTokenizer, clips: Tensor, assignment: Tensor, generator: torch.Generator
) -> None:
    """Put the codebook on random encoder outputs of these clips."""
    z = F.normalize(model._encode(clips, ClipGroups.from_assignment(assignment)).float(), dim=-1)
    book = model.quantizer.codebook
    pick = torch.randint(len(z), (len(book),), generator=generator)
    noise = torch.randn(book.shape, generator=generator) * 0.01
    book.copy_(F.normalize(z[pick.to(z.device)] + noise.to(z.device), dim=-1))


@torch.no_grad()
def initialise_from(model: VideoTokenizer, source: VideoTokenizer) -> None:
    """Start from a trained tokenizer: the same, of shorter clips, with fewer layers, codes or dims.

    Positions of blocks that the source does not have get what its last block has learned beyond
    the fixed table that both began with. Layers that it does not have come after its own and start
    as identity, as every layer does (Net2Net's "deeper"); codes that it does not have are copies
    of its own, nudged by a twentieth of the distance to a code's nearest neighbour; dimensions of
    codes that it does not have are zero at first. So the grown model starts as good as the source.

    Args:
        model: to be filled.
        source: the same but for `num_frames`, `codebook_size`, `code_dim` and the Q-Formers'
            `layers`, which are at most the model's.

    Raises:
        EvatokError: they differ in more.
    """
    ours, theirs = model.config, source.config
    if different := _beyond_growth(ours, theirs):
        raise EvatokError(
            f"start_from: that tokenizer has another {' and '.join(different)}; only num_frames, "
            "codebook_size, code_dim and layers may differ, and be smaller there"
        )
    state = source.state_dict()
    for name in ("encoder_places.position", "decoder_places.position"):
        fixed = model.get_parameter(name).detach()  # as it was made
        learned = state[name] - fixed[: len(state[name])]
        last = learned[-model.num_cells :].repeat(model.num_blocks - source.num_blocks, 1)
        state[name] = fixed + torch.cat([learned, last])
    more = ours.code_dim - theirs.code_dim
    for name in ("code_in.weight", "code_in.bias"):  # what is new of a code says nothing yet
        state[name] = F.pad(state[name], (0, 0) * (state[name].ndim - 1) + (0, more))
    read = model.code_out.weight.detach().clone()
    read[:, : theirs.code_dim] = state["code_out.weight"]
    state["code_out.weight"] = read
    book = F.pad(state["quantizer.codebook"], (0, more))
    state["quantizer.codebook"] = _more_codes(book, ours.codebook_size)
    usage, codes = state["quantizer.usage"], ours.codebook_size
    copies = torch.arange(codes, device=usage.device) % len(usage)
    state["quantizer.usage"] = usage[copies] * (len(usage) / codes)
    model.load_state_dict({**model.state_dict(), **state})


@torch.no_grad()
def initialise_router_from(model: Router, source: Router) -> None:
    """Start from a trained router, with or without w_q as an input.

    One that has learned every w_q becomes one that knows its own w_q alone by adding what it says
    of it to the [CLS] token; the reverse begins without saying anything of w_q.

    Args:
        model: to be filled.
        source: the same but for `preference` and what the training writes.

    Raises:
        EvatokError: they differ in more.
    """
    free = {"preference", "w_q", "standard", "quality"}
    names = [name for name in type(model.config).model_fields if name not in free]
    ours, theirs = model.config, source.config
    different = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    if different:
        raise EvatokError(f"start_from: that router has another {' and '.join(different)}")
    state = source.state_dict()
    said = {name: state.pop(name) for name in list(state) if name.startswith("preference.")}
    if model.preference is not None:
        if source.preference is None:
            last = model.preference[-1]
            assert isinstance(last, torch.nn.Linear)
            last.weight.zero_()
            last.bias.zero_()
            said = {f"preference.{name}": x for name, x in model.preference.state_dict().items()}
        state |= said
    elif source.preference is not None:
        own = state["cls_embedding"].new_tensor([theirs.w_q - 1])
        state["cls_embedding"] = state["cls_embedding"] + source.preference(own)
    model.load_state_dict(state)


def check_same_tokens(ours: TokenizerConfig, theirs: TokenizerConfig) -> None:
    """Raise where a tokenizer that starts from another could write other tokens than it.

    Raises:
        EvatokError: they differ in more than the decoder's layers.
    """
    names = [name for name in type(ours).model_fields if name != "decoder"]
    different = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    if different:
        raise EvatokError(
            f"trained: decoder: the tokenizer in start_from has another {' and '.join(different)}; "
            "only decoder.layers may differ, and be smaller there"
        )


def _beyond_growth(ours: TokenizerConfig, theirs: TokenizerConfig) -> list[str]:
    """Names of the settings in which a model cannot have grown out of another."""
    different = []
    for name in type(ours).model_fields:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if name in ("num_frames", "codebook_size", "code_dim"):
            can_grow = mine >= other
        elif isinstance(mine, QFormerConfig):
            can_grow = mine == other.model_copy(update={"layers": mine.layers})
            can_grow = can_grow and mine.layers >= other.layers
        else:
            can_grow = mine == other
        if not can_grow:
            different.append(name)
    return different


def _more_codes(book: Tensor, count: int) -> Tensor:
    """(count, D) codes: those of the book (K, D), then copies of them, each a little aside."""
    if count == len(book):
        return book
    copies = torch.arange(count, device=book.device) % len(book)
    unit = F.normalize(book.double(), dim=-1)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-1)
    nearest = (2 - 2 * cosine.amax(-1)).clamp_min(0).sqrt()  # distance to the nearest other code
    generator = torch.Generator().manual_seed(0)
    aside = torch.randn(count, book.shape[1], generator=generator).double().to(book.device)
    aside = F.normalize(aside, dim=-1) * 0.05 * nearest[copies, None]
    return torch.cat([book, (unit[copies] + aside)[len(book) :].to(book.dtype)])
