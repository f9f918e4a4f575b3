"""Any video, of any length and size, to tokens and back, clip by clip.

Shape letters: F frames, H W pixels, N clips, T blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evatok.core.compute.devices import device_of
from evatok.core.errors import EvatokError
from tokenizer.model import VideoTokenizer
from tokenizer.search.assigners import Assigner
from tokenizer.search.reward import psnr_of_mse
from tokenizer.tokens import Tokens
from video.clips import resize_crop, to_clip, to_frames


@dataclass(frozen=True)
class CodecResult:
    """A video and what became of it.

    Attributes:
        original: (F, S, S, 3) uint8, the video as the tokenizer saw it: resized and cropped.
        frames: (F, S, S, 3) uint8, the reconstruction.
        tokens: of the N clips.
        psnr: (N,) float32 dB of each clip, over its real frames (not over repeats of the last).
    """

    original: Tensor
    frames: Tensor
    tokens: Tokens
    psnr: Tensor


class Codec:
    """Reconstructs whole videos with one tokenizer and one way to choose assignments."""

    def __init__(self, model: VideoTokenizer, assigner: Assigner, batch_size: int = 16) -> None:
        self.model = model.eval()
        self.assigner = assigner
        self.batch_size = batch_size

    def clips(self, frames: Tensor) -> Tensor:
        """Cut frames (F, S, S, 3) uint8 into clips (N, 3, 4 T, S, S) in [−1, 1].

        The last clip is filled up by repeating the last frame.
        """
        length = self.model.config.num_frames
        missing = -len(frames) % length
        if missing:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        return torch.stack([to_clip(part) for part in frames.split(length)])

    @torch.no_grad()
    def reconstruct(
        self, frames: Tensor, progress: Callable[[int], None] | None = None
    ) -> CodecResult:
        """Encode and decode a video, on the model's device; the result is on the CPU.

        Args:
            frames: (F, H, W, 3) uint8, any F ≥ 1 and any size.
            progress: called with the number of frames done.
        """
        if frames.ndim != 4 or len(frames) == 0:
            raise EvatokError(f"frames {tuple(frames.shape)} are not (F, H, W, 3) with F ≥ 1")
        original = resize_crop(frames, self.model.config.size)
        out: list[Tensor] = []
        tokens: list[Tokens] = []
        device = device_of(self.model)
        for part in self.clips(original).split(self.batch_size):
            clips = part.to(device)
            coded = self.model.encode(clips, self.assigner(clips))
            tokens.append(coded.to("cpu"))
            out.extend(to_frames(clip) for clip in self.model.decode(coded).clamp(-1, 1).cpu())
            if progress is not None:
                progress(min(len(original), len(out) * self.model.config.num_frames))
        decoded = torch.cat(out)[: len(original)]
        length = self.model.config.num_frames
        errors = [
            ((a.float() - b.float()) / 127.5).square().mean()
            for a, b in zip(decoded.split(length), original.split(length), strict=True)
        ]
        return CodecResult(original, decoded, Tokens.cat(tokens), psnr_of_mse(torch.stack(errors)))
