"""Clips of what a text says.

Shape letters: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evatok.core.errors import EvatokError
from evatok.core.paths import refuse_overwrite, safe_names
from evatok.generate.samples import ClipsDone, request_seed, run_requests, write_samples
from evatok.hub import Models
from evatok.workflows.captions import measure_clips
from generator.inference.requests import SamplingConfig, text_requests
from tokenizer.tokens import Tokens

MAX_TITLE = 36  # letters above a panel


def sample_texts(
    models: Models,
    texts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingConfig,
    progress: ClipsDone | None = None,
) -> tuple[Tensor, Tokens]:
    """One clip for each text.

    Args:
        models: generator with text, and final tokenizer.
        texts: any case; names of classes as in the data or in words.
        seeds: one a clip; the same text and seed give the same clip whatever else is asked for.
        settings: how tokens are chosen; guidance is against the null condition, any clip.
        progress: told now and then.

    Returns:
        (B, 3, F, H, W) float32 in [−1, 1], and their tokens.

    Raises:
        EvatokError: a generator without text, or a text that is empty or too long for it.
    """
    captioner, generator = models.text, models.generator
    assert generator.text is not None  # models.text has seen to that
    pieces = captioner.encode(texts)
    requests = text_requests(generator.vocabulary, generator.text, pieces, seeds, settings)
    return run_requests(models, requests, progress)


def text_seeds(texts: Sequence[str], seed: int) -> list[int]:
    """A seed for each clip; the i-th clip of a text has the same whatever else is asked for."""
    counts: dict[str, int] = {}
    seeds = []
    for text in texts:
        place = counts.get(text, 0)
        counts[text] = place + 1
        seeds.append(request_seed(seed, zlib.crc32(text.encode()), place))
    return seeds


def text_files(
    models: Models,
    texts: Sequence[str],
    count: int,
    seed: int,
    settings: SamplingConfig,
    output: Path,
    *,
    fps: float = 15,
    plain: bool = False,
    progress: ClipsDone | None = None,
) -> dict[str, Any]:
    """Sample texts and write one mp4 a clip; arguments as of `sample_files`.

    Returns:
        JSON-able: `samples` with text, measured brightness and motion, file, tokens and
        assignment; means.
    """
    if count < 1:
        raise EvatokError(f"{count} clips asked for; at least 1")
    texts = list(dict.fromkeys(texts))
    wanted = [(text, place) for text in texts for place in range(count)]
    titles = [text for text, _ in wanted]
    seeds = text_seeds(titles, seed)
    names = _names(texts)
    files = [output / f"{names[text]}-{seed}-{place:03d}.mp4" for text, place in wanted]
    refuse_overwrite([output, *files], [models.directory])
    clips, tokens = sample_texts(models, titles, seeds, settings, progress)
    shown = [text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "…" for text in titles]
    written = write_samples(models, clips, tokens, shown, files, fps=fps, plain=plain)
    brightness, motion = (values.tolist() for values in measure_clips(clips))
    rows = [
        {"text": text, "brightness": round(light, 4), "motion": round(moves, 4), **row}
        for text, light, moves, row in zip(titles, brightness, motion, written, strict=True)
    ]
    return {
        "samples": rows,
        "num_samples": len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "seed": seed,
        **settings.model_dump(),
    }


def _names(texts: Sequence[str]) -> dict[str, str]:
    """A file name for each text, all different."""
    names: dict[str, str] = {}
    for text in texts:
        stem = re.sub(r"\W+", "-", text.casefold()).strip("-")[:60] or "text"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[text] = name
    return dict(zip(names, safe_names(list(names.values())), strict=True))
