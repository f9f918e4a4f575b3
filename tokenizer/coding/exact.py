"""Tokens that do not depend on the batch, the number of threads or the device.

Floating-point sums differ in their last bits from one batch size to another, and a code vector that
lies between two codes may then go to either. Here such near ties are found by their margin, and the
clips that have one are computed again alone in float64, where the margin is large against rounding;
on the CPU, where the device has no float64.

Shape letters: B batch, T blocks, L packed tokens, F frames, H W pixels.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evatok.core.compute.devices import device_of, float64_device
from evatok.core.errors import EvatokError
from tokenizer.attention.clip_groups import ClipGroups
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.tokens import Tokens

CODE_MARGIN = 2e-5  # of a cosine; float32 errs by some 1e-6
LOGIT_MARGIN = 1e-3  # of a router's logit; float32 errs by some 1e-5
M = TypeVar("M", bound=nn.Module)


class ExactEncoder:
    """A tokenizer and a router whose decisions are those of float64."""

    def __init__(self, model: VideoTokenizer, router: Router | None = None) -> None:
        """Args: model: float32, in eval mode; router: likewise, for `assign`."""
        self.model, self.router = model, router

    @cached_property
    def _model64(self) -> VideoTokenizer:
        return _float64(self.model)

    @cached_property
    def _router64(self) -> Router:
        return _float64(self._router)

    @property
    def _router(self) -> Router:
        if self.router is None:
            raise EvatokError("no router was given to choose assignments with")
        return self.router

    @torch.no_grad()
    def encode(self, clips: Tensor, assignment: Tensor) -> Tokens:
        """Encode clips.

        Args:
            clips: (B, 3, F, H, W) float32 in [−1, 1], F = 4 T.
            assignment: (B, T) int64, each one of the levels.
        """
        self.model.check(clips, assignment)
        ids, margin = self._nearest(self.model, clips, assignment)
        lengths = assignment.sum(1).tolist()
        parts = list(ids.split(lengths))
        close = [bool(part.min() < CODE_MARGIN) for part in margin.split(lengths)]
        for index, is_close in enumerate(close):
            if is_close:
                one = slice(index, index + 1)
                where = float64_device(clips.device)
                clip, row = clips[one].to(where).double(), assignment[one].to(where)
                parts[index] = self._nearest(self._model64, clip, row)[0].to(clips.device)
        return Tokens(torch.cat(parts), assignment)

    def _nearest(
        self, model: VideoTokenizer, clips: Tensor, assignment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ids (L,) in batch order, and by how much each cosine beats the next one's."""
        groups = ClipGroups.from_assignment(assignment)
        unit = F.normalize(model._encode(clips, groups), dim=-1)
        cosine = unit @ F.normalize(model.quantizer.codebook, dim=-1).T
        best = cosine.topk(min(2, cosine.shape[1]), -1)
        order = groups.rows_in_batch_order()
        return best.indices[order, 0], (best.values[:, 0] - best.values[:, -1])[order]

    @torch.no_grad()
    def assign(
        self,
        clips: Tensor,
        *,
        w_q: float | Tensor | None = None,
        max_tokens: int | None = None,
        is_full: bool = False,
    ) -> Tensor:
        """(B, T) assignments as `Router.assign` does; is_full: of the most tokens allowed."""
        router = self._router
        candidates = router.levels.candidates(router.num_blocks).to(clips.device)
        allowed = torch.ones(len(candidates), dtype=torch.bool, device=clips.device)
        if max_tokens is not None:
            allowed = candidates.sum(1) <= max_tokens
            if not bool(allowed.any()):
                shortest = int(candidates.sum(1).min())
                raise EvatokError(
                    f"at most {max_tokens} tokens a clip: the shortest has {shortest}"
                )
            if is_full:
                lengths = candidates.sum(1)
                allowed = lengths == lengths[allowed].max()
        wanted = None
        if w_q is not None:
            wanted = torch.as_tensor(w_q, dtype=torch.float32, device=clips.device)
            wanted = wanted.expand(len(clips))
        logits = router(clips, wanted).masked_fill(~allowed, float("-inf"))
        best = logits.topk(min(2, logits.shape[1]), -1)
        chosen = best.indices[:, 0]
        for index in (best.values[:, 0] - best.values[:, -1] < LOGIT_MARGIN).nonzero().flatten():
            one = slice(int(index), int(index) + 1)
            where = float64_device(clips.device)
            w_q = None if wanted is None else wanted[one].to(where).double()
            alone = self._router64(clips[one].to(where).double(), w_q)
            best64 = alone.masked_fill(~allowed.to(where), float("-inf")).argmax(-1)
            chosen[one] = best64.to(clips.device)
        return candidates[chosen]


def _float64(model: M) -> M:
    """A copy in float64, on the CPU where the device has none."""
    return copy.deepcopy(model).to(float64_device(device_of(model))).double()
