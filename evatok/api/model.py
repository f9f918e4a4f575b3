"""A model: its parts, and what they do together.

Shape letters: B batch, F frames, T blocks, S pixels of a side, L packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from evaluation.scoring.records import Record
from evatok.api.arguments import settings_of, texts_of, whole
from evatok.api.clip_checks import check_clips, check_tokens
from evatok.api.token_files import VideoTokens, decode_video, encode_video
from evatok.api.videos import Video
from evatok.core.compute.devices import resolve_device
from evatok.core.errors import EvatokError
from evatok.generate.prompts import sample_texts, text_seeds
from evatok.generate.samples import (
    BATCH,
    decode,
    find_classes,
    frame_condition,
    guidance_of,
    labels_of,
    request_seed,
    sample_labels,
)
from evatok.generate.token_rate import Rate
from evatok.hub import Models, export_run, push_run
from evatok.model_folders import locate
from generator.budget import BudgetConfig
from generator.inference.requests import SamplingConfig
from generator.inference.rollout import continue_clips
from tokenizer.coding import refined
from tokenizer.tokens import Tokens
from video.clips import resize_crop, to_clip, to_frames

Assignment = str | Sequence[int] | Tensor
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SAMPLE_RATE = 15.0  # frames a second of what is made from nothing


class Model(Models):
    """A tokenizer, its router and a generator of its tokens, on one device.

    The parts are attributes, loaded when they are first used: `final` (the tokenizer), `router`,
    `preference`, `generator`, `proxy`, `features`; each is an `nn.Module`.
    """

    @overload
    def encode(
        self,
        video: Video,
        *,
        quality: float | None = None,
        assignment: Assignment | None = None,
        max_tokens: int | None = None,
        refine: int = 0,
    ) -> VideoTokens: ...

    @overload
    def encode(
        self,
        video: Tensor,
        *,
        quality: float | None = None,
        assignment: Assignment | None = None,
        max_tokens: int | None = None,
        refine: int = 0,
    ) -> Tokens: ...

    def encode(
        self,
        video: Video | Tensor,
        *,
        quality: float | None = None,
        assignment: Assignment | None = None,
        max_tokens: int | None = None,
        refine: int = 0,
    ) -> VideoTokens | Tokens:
        """Encode a video of any size and length, or a batch of clips.

        Args:
            video: a `Video`; or clips (B, 3, F, S, S) float in [−1, 1] of the tokenizer's length
                and size.
            quality: w_q in [0, 2]: above 1 the router spends more tokens, below fewer.
            assignment: who chooses instead of the router: "uniform:32", "best",
                "threshold:24.5" (dB), or the token counts of the T blocks of every clip; of clips
                also a tensor (B, T) int64.
            max_tokens: the most that a clip (of a video: of one tile) may take.
            refine: steps of a search for tokens with less error, above all where the video moves;
                their number does not change. Each is three times as long as decoding.

        Returns:
            `VideoTokens` of a video, `Tokens` of clips, on the CPU.

        Raises:
            EvatokError: clips of another shape, type or range, or options that exclude each other.
            EvatokError: an assignment that this model does not have, fewer than 0 steps, or a
                number that is not whole.
        """
        refine = whole("refine", refine)
        if max_tokens is not None:
            max_tokens = whole("max_tokens", max_tokens)
        if isinstance(video, Video):
            rate = Rate(_spec(quality, assignment), max_tokens)
            return encode_video(self, video, rate, refine)
        config = self.final.config
        clips = check_clips(video, config.num_frames, config.size).to(self.device)
        with torch.no_grad():
            if isinstance(assignment, Tensor):
                if quality is not None or max_tokens is not None:
                    raise EvatokError("the assignment is given: leave out quality and max_tokens")
                chosen = self._rows(assignment, len(clips))
            else:
                chosen = self.assigner(_spec(quality, assignment), max_tokens)(clips)
            tokenizer = self.final.eval()
            tokens = tokenizer.encode(clips, chosen.to(self.device))
            return refined.refine(tokenizer, clips, tokens, refine).to("cpu")

    def _rows(self, assignment: Tensor, batch: int) -> Tensor:
        """Return (B, T) int64 token counts, if the tokenizer has them."""
        levels, wanted = self.final.levels.values, (batch, self.final.num_blocks)
        if tuple(assignment.shape) != wanted or assignment.dtype not in WHOLE:
            raise EvatokError(
                f"the assignment is {tuple(assignment.shape)} {assignment.dtype}: give {wanted} "
                "int64, the tokens of each block of each clip"
            )
        unknown = sorted(set(assignment.flatten().tolist()) - set(levels))
        if unknown:
            raise EvatokError(f"no block has {unknown[0]} tokens: give {levels}")
        return assignment.long()

    @overload
    def decode(self, tokens: VideoTokens) -> Video: ...

    @overload
    def decode(self, tokens: Tokens) -> Tensor: ...

    def decode(self, tokens: VideoTokens | Tokens) -> Video | Tensor:
        """Decode what `encode` gives.

        Returns:
            A `Video` of `VideoTokens`; clips (B, 3, F, S, S) float32 in [−1, 1] of `Tokens`.

        Raises:
            EvtError: the `VideoTokens` are another model's; `Tokens` do not tell whose they are.
            EvatokError: no tokens, or ids that the codebook does not have.
        """
        if isinstance(tokens, VideoTokens):
            return decode_video(self, tokens)
        checked = check_tokens(tokens, self.final.config.codebook_size)
        return decode(self.final.eval(), checked)

    def sample(
        self,
        classes: Sequence[str] | None = None,
        *,
        texts: Sequence[str] | None = None,
        guidance: float | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
    ) -> list[Video]:
        """Generate one video for each class or text.

        The i-th of a class (text) is the same for a seed, whatever else is asked for.

        Args:
            classes: names, one a video.
            texts: captions instead, one a video.
            guidance: scale s of u + s (c − u); 1 = off; None: the model's own.
            seed: another seed, other videos.
            temperature: 0 = always the most probable token.
            top_k: only the k most probable tokens; 0 = all.
            top_p: only this much probability.
            max_tokens: the most that a video may take.

        Raises:
            EvatokError: both or neither of classes and texts.
            EvatokError: a class or text that the generator does not take, or a number out of range.
        """
        names, captions = texts_of("classes", classes), texts_of("texts", texts)
        seed = whole("seed", seed, 0)
        settings = settings_of(
            SamplingConfig,
            guidance=guidance_of(self, guidance),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            budget=settings_of(BudgetConfig, max_tokens=max_tokens),
        )
        if (not names) == (not captions):
            raise EvatokError("give classes or texts, a list with one for each video")
        if names:
            known = self.generator.vocabulary.class_names
            wanted = [known[label] for label in find_classes(known, names)]
            clips, _ = sample_labels(self, *labels_of(self, wanted), seed, settings)
        else:
            clips, _ = sample_texts(self, captions, text_seeds(captions, seed), settings)
        return [Video(to_frames(clip), SAMPLE_RATE) for clip in clips]

    def predict(
        self,
        video: Video,
        frames: int | None = None,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
    ) -> Video:
        """Generate what follows the first frames of a video.

        Args:
            video: as many frames as the generator starts from (nano: 5), of any size.
            frames: of the result, given ones included; if None, those of a clip. More are made
                window by window.
            seed: another seed, another prediction.
            temperature: 0 = always the most probable token.
            top_k: only the k most probable tokens; 0 = all.
            top_p: only this much probability.
            max_tokens: the most that a window may take.

        Returns:
            A video at the tokenizer's size, which begins with the given frames, reconstructed.

        Raises:
            EvatokError: no `Video`, another number of frames given, or a number out of range.
            EvatokError: a generator that predicts no frames.
        """
        if not isinstance(video, Video):
            raise EvatokError(
                f"a {type(video).__name__} cannot be continued: give a Video (of an array "
                "evatok.Video(frames, rate), of a file evatok.read_video(path))"
            )
        seed = whole("seed", seed, 0)
        given = frame_condition(self).num_frames
        if len(video) != given:
            raise EvatokError(
                f"a prediction starts from {given} frames, the video has {len(video)}: "
                f"give video[:{given}]"
            )
        settings = settings_of(
            SamplingConfig,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            budget=settings_of(BudgetConfig, max_tokens=max_tokens),
        )
        config = self.final.config
        clip = to_clip(resize_crop(video.frames, config.size))[None]
        length = config.num_frames if frames is None else whole("frames", frames)
        seeds = [request_seed(seed, 0)]
        done = continue_clips(
            self.generator, self.final, clip, length, seeds, settings, batch_size=BATCH
        )
        return Video(to_frames(done.videos[0]), video.rate)

    def save_pretrained(self, folder: Path | str, records: Sequence[Record] = ()) -> None:
        """Write all parts, in float16, and a model card into a folder that `load` takes.

        A part that was trained or replaced since it was loaded is written as it is in memory.

        Args:
            folder: made if absent; parts of these names are replaced.
            records: measurements for the card: `evaluation.scoring.records.read_records` reads
                what `evatok evaluate --record` has written.

        Raises:
            EvatokError: the folder lies in the model's own.
        """
        export_run(self.directory, Path(folder), records, self.loaded)

    def push_to_hub(
        self,
        repository: str,
        records: Sequence[Record] = (),
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Upload all parts and a model card as one repository of the Hugging Face hub.

        A part that was trained or replaced since it was loaded is written as it is in memory.

        Args:
            repository: `owner/name`, made if absent; `load` takes it then.
            records: as in `save_pretrained`.
            private: who may see a repository that is made.
            token: of an account, if not that of `hf auth login`.
            revision: branch.

        Returns:
            Address of the commit.

        Raises:
            EvatokError: the hub refuses it.
        """
        return push_run(
            self.directory,
            repository,
            records,
            self.loaded,
            private=private,
            token=token,
            revision=revision,
        )


def load(name_or_path: str | Path = "nano", device: str = "auto") -> Model:
    """Load a model; its parts are read when they are first used.

    Args:
        name_or_path: a name ("nano"), an exported folder, a run's folder ("runs/nano"), or a
            repository of the Hugging Face hub ("owner/name").
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.

    Raises:
        FileNotFoundError: no such model here, or the hub does not give it.
        EvatokError: no such device.
    """
    return Model(locate(name_or_path), resolve_device(device))


def _spec(quality: float | None, assignment: Assignment | None) -> str:
    """Return the rule as `tokenizer.search.assigners` reads it."""
    if quality is not None:
        if not (assignment is None or (isinstance(assignment, str) and assignment == "router")):
            raise EvatokError("quality is the router's: leave out the assignment")
        if isinstance(quality, bool) or not isinstance(quality, Real | Tensor):
            raise EvatokError(f"quality is {quality!r}: give a number in [0, 2]")
        if not 0 <= quality <= 2:
            raise EvatokError(f"quality {quality} is outside [0, 2]")
        return f"router:{quality:g}"
    if isinstance(assignment, Tensor):
        raise EvatokError("a video takes one assignment for all clips: give a list of T numbers")
    if assignment is None or isinstance(assignment, str):
        return "router" if assignment is None else assignment
    if not isinstance(assignment, Sequence | np.ndarray):
        raise EvatokError(
            f"assignment is {assignment!r}: give a rule such as 'uniform:32', or a list of the "
            "token counts of the T blocks"
        )
    return ",".join(str(whole("a token count", count)) for count in assignment)
