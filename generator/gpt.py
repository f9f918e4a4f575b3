"""The GPT: exactly a Llama, so that any Llama engine can run its weights.

Pre-norm layers of RMSNorm, rotary self-attention and SwiGLU, no biases, an untied head (method
section 6). Rotary pairs are (i, i + Dh / 2), as Transformers has them: its checkpoint is a plain
copy of these weights. Sequences are packed; nothing is ever padded.

Shape letters: R rows, L packed tokens, N sequences, D width, V vocabulary, Hd heads, Dh head width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from evatok.core.config import Config, Depth, Heads, Width, check_parameters
from evatok.core.errors import EvatokError
from evatok.core.loading.pretrained import Pretrained
from generator.attention import Sequences, attend, highest_matmul_precision
from generator.conditions import FrameCondition, TextCondition, check_text, longest_sequence
from generator.grammar import Vocabulary
from generator.inference.batching import Cohorts, DecodeBatch
from generator.inference.cpu_kernels import CpuDecoder
from generator.inference.cuda_graph import GraphBatch
from generator.inference.kv_cache import KVCache

Rotary = tuple[Tensor, Tensor]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class GPTConfig(Config):
    """Size of the GPT (paper: 768 × 12 × 12, hidden 2048; 1024 × 24 × 16; 1280 × 30 × 20)."""

    width: Width
    layers: Depth
    heads: Heads
    hidden: Width
    rope_base: float = Field(default=10_000.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # after embedding, attention and MLP

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        check_parameters((4 * self.width + 3 * self.hidden) * self.width * self.layers)
        return self


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 with ε = 1e-5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), 1e-5).to(x.dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn pairs (i, i + Dh / 2) by the angles of their position, in float32.

    Args:
        x: (L, Hd, Dh).
        rotary: cosines and sines, each (L, 1, Dh / 2) float32.
    """
    cos, sin = rotary
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class GPTLayer(nn.Module):
    """One Llama layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_attention = RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = RMSNorm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, mix: Mix) -> Tensor:
        """One layer.

        Args:
            x: (L, D).
            rotary: see `rotate`.
            mix: attention; rotated q, k and v, each (L, Hd, Dh), to the same shape.

        Returns:
            (L, D).
        """
        h = self.norm_attention(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        mixed = self.out(mix(rotate(q, rotary), rotate(k, rotary), v).flatten(-2))
        x = x + F.dropout(mixed, self.dropout, self.training)
        h = self.norm_mlp(x)
        h = self.down(F.silu(self.gate(h)) * self.up(h))
        return x + F.dropout(h, self.dropout, self.training)


class GPT(
    nn.Module,
    Pretrained,
    pipeline_tag="text-to-video",
    coders={  # how config.json carries the typed parts
        part: (lambda value: value.model_dump(mode="json"), part.model_validate)
        for part in (GPTConfig, Vocabulary, FrameCondition, TextCondition)
    },
):
    """Next-token logits of packed sequences.

    Attributes:
        size: of the network.
        vocabulary: what the tokens mean.
        frames: how given frames become a condition; None for a model without frame prediction.
        text: how a text becomes a condition; None for a model without text.
        guidance: scale that its training's settings sample with; None where they tell none.
        max_tokens: longest sequence.
        backend: attention backend; by device if None.
        compiled: the decoder of `optimize.prepare_for_inference`, with packed weights.
        graphs: whether decode steps are replayed as CUDA graphs.
        weights: how decode steps have them, a name out of `decoding.Weights`.
    """

    # The mixin reads these annotations: no `from __future__ import annotations` in this file. It
    # also takes an argument named `config` for the whole of config.json, hence `size`.
    output_layers = ("head",)

    def __init__(
        self,
        size: GPTConfig,
        vocabulary: Vocabulary,
        frames: FrameCondition | None = None,
        text: TextCondition | None = None,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        if size.width % (2 * size.heads):
            raise EvatokError(f"width {size.width} does not give {size.heads} heads an even width")
        if frames is not None:
            frames.check(vocabulary)
        check_text(vocabulary, text)
        self.size, self.vocabulary, self.frames, self.text = size, vocabulary, frames, text
        self.guidance = guidance
        self.max_tokens = longest_sequence(vocabulary, frames, text)
        self.backend: str | None = None
        self.compiled: CpuDecoder | None = None
        self.graphs, self.weights = False, "float32"
        self.embedding = nn.Embedding(vocabulary.size, size.width)
        self.layers = nn.ModuleList(GPTLayer(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.width)
        self.head = nn.Linear(size.width, vocabulary.size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)  # every token equally likely at the start

        head_width = size.width // size.heads
        rates = size.rope_base ** (-torch.arange(0, head_width, 2).float() / head_width)
        angles = torch.arange(self.max_tokens).float()[:, None] * rates
        self.register_buffer("_cos", angles.cos(), persistent=False)
        self.register_buffer("_sin", angles.sin(), persistent=False)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Refuse weights laid out for sampling, which nothing could load."""
        if not all(isinstance(layer, GPTLayer) for layer in self.layers):
            raise EvatokError(
                "this generator is laid out for sampling: save the one that "
                'GPT.from_pretrained(model.folder("generator")) returns'
            )
        super()._save_pretrained(save_directory)

    def _rotary(self, positions: Tensor) -> Rotary:
        cos, sin = self.get_buffer("_cos"), self.get_buffer("_sin")
        return cos[positions, None], sin[positions, None]

    def _run(self, ids: Tensor, positions: Tensor, mix: Callable[[int], Mix]) -> Tensor:
        """Normalised features (L, D) of tokens (L,) at positions (L,)."""
        rotary = self._rotary(positions)
        x = F.dropout(self.embedding(ids), self.size.dropout, self.training)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotary, mix(index))
        return self.norm(x)

    def forward(
        self, ids: Tensor, cu_seqlens: Tensor, target_positions: Tensor | None = None
    ) -> Tensor:
        """Logits of the token after each token.

        Args:
            ids: (L,) int64 in [0, V), sequences packed.
            cu_seqlens: (N + 1,) int32, where each sequence begins; the last entry is L.
            target_positions: (P,) int64 in [0, L), where logits are wanted; everywhere if None.

        Returns:
            (L, V) or (P, V).

        Raises:
            EvatokError: a sequence longer than the model holds.
        """
        sequences = Sequences.from_cu_seqlens(cu_seqlens)
        if sequences.max_seqlen > self.max_tokens:
            raise EvatokError(
                f"a sequence of {sequences.max_seqlen} tokens; the model holds {self.max_tokens}"
            )
        x = self._run(
            ids,
            sequences.positions(),
            lambda _: lambda q, k, v: attend(q, k, v, sequences, self.backend),
        )
        return self.head(x if target_positions is None else x[target_positions])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.weight.device

    def new_batch(self, rows: int, max_len: int) -> DecodeBatch:
        """Room for so many rows of at most so many tokens, for the engine."""
        if self.compiled is not None and self.device.type == "cpu":
            return self.compiled.new_batch(rows, max_len)
        if self.graphs:
            return GraphBatch(self, rows, max_len, record=True)
        return Cohorts(self, rows, max_len)

    def new_cache(self, rows: int, max_len: int) -> KVCache:
        """An empty cache for so many rows of at most so many tokens."""
        weight, size = self.embedding.weight, self.size
        return KVCache(
            size.layers,
            rows,
            size.heads,
            max_len,
            size.width // size.heads,
            weight.device,
            weight.dtype,
        )

    def prefill(self, ids: Tensor, cu_seqlens: Tensor, cache: KVCache, rows: Tensor) -> None:
        """Read prompts into empty rows of a cache.

        Args:
            ids: (L,) int64, prompts packed.
            cu_seqlens: (N + 1,) int32, best on the CPU: the device is then not waited for.
            cache: where keys and values go.
            rows: (N,) int64, the row of each prompt; likewise.
        """
        sequences = Sequences.from_cu_seqlens(cu_seqlens, self.device)
        there = rows.to(self.device)

        def mix(layer: int) -> Mix:
            def store(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                cache.fill(layer, there, sequences, k, v)
                return attend(q, k, v, sequences, self.backend)

            return store

        cache.set_positions(rows.tolist(), sequences.lengths)
        self._run(ids, sequences.positions(), mix)

    def step(self, ids: Tensor, caches: Sequence[KVCache]) -> Tensor:
        """Take one token a row and say what may follow.

        Args:
            ids: (R,) int64, rows of all caches one after the other.
            caches: each row's past; the token is added to it.

        Returns:
            (R, V).
        """
        sizes = [len(cache) for cache in caches]

        def mix(layer: int) -> Mix:
            def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                parts = zip(caches, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
                return torch.cat([cache.attend(layer, *qkv) for cache, *qkv in parts])

            return look

        with highest_matmul_precision():
            x = self._run(ids, torch.cat([cache.positions for cache in caches]), mix)
            logits = self.head(x)
        for cache in caches:
            cache.advance()
        return logits
