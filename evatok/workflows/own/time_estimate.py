"""Estimate of the time of all stages for own videos, from timed steps, corrected as stages end.

Every network takes real steps here, with the optimiser and the precision of its settings, on noise
of the clips' shape: a few seconds in all. What else a stage does, validation, samples, the report,
is counted in forward passes, which are timed too; decoding is timed on one video. Compiling is a
constant. As stages end, their real seconds scale the rest (`Clock`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evatok.core.compute.precision import bfloat16_autocast
from evatok.model_folders import PREFERENCE
from evatok.plan.flops import clip_flops, search_flops
from generator.gpt import GPT
from generator.grammar import Vocabulary
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from training.trainee import Trainee
from video.clips import sides
from video.reading import VideoError, read_frames

ROWS = 4  # of a timed pass
COMPILING = 60.0  # seconds before the first step of what is compiled
STARTING = 2.0  # seconds in which a stage loads, saves, and writes its record
OTHER_CLIPS = 8  # forward passes of the report for each clip, beside those at every level


class Clock:
    """Expected seconds of the stages, corrected by those that have ended."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        """Args: expected: seconds of each stage; those that are not there are not told."""
        self._first = dict(expected)
        self._real: dict[str, float] = {}

    def learn(self, name: str, seconds: float) -> None:
        """Take note of what a whole stage took."""
        if name in self._first:
            self._real[name] = seconds

    def expected(self, name: str) -> float | None:
        """Seconds of a stage, at the pace of those that have ended."""
        if name not in self._first:
            return None
        guessed = sum(self._first[other] for other in self._real)
        pace = sum(self._real.values()) / guessed if guessed else 1.0
        return self._first[name] * pace

    def left(self) -> float:
        """Seconds of all stages that have not ended."""
        return sum(self.expected(name) or 0.0 for name in self._first.keys() - self._real.keys())


def in_words(seconds: float) -> str:
    """A duration as people say it: "40 s", "3.5 min", "2.1 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_of(settings: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """Seconds of every stage, by name.

    Args:
        settings: of all stages of own videos.
        device: where they run.
    """
    proxy, report = settings["proxy"], settings["pipeline"].report
    model = VideoTokenizer(proxy.model).to(device)
    router = Router(settings["router"].model).to(device)
    shape = (ROWS, 3, proxy.model.num_frames, *sides(proxy.model.size))
    clips = torch.rand(shape, device=device) * 2 - 1
    candidates = model.levels.candidates(model.num_blocks).to(device)
    rows = torch.linspace(0, len(candidates) - 1, ROWS).round().long()
    assignment = candidates[rows.to(device)]

    def tokenizer_loss(net: Any) -> Tensor:
        made = net(clips, assignment)
        return (made.clips - clips).square().mean() + made.quantized.codebook_loss

    def router_loss(net: Any) -> Tensor:
        return F.cross_entropy(net(clips), rows.to(device))

    steps = {
        "proxy": _step(model, tokenizer_loss, proxy.train, ROWS, device),
        "router": _step(router, router_loss, settings["router"].train, ROWS, device),
    }
    model.eval()
    router.eval()
    with torch.no_grad():
        once = _timed(lambda: model(clips, assignment), device) / ROWS  # a clip, there and back
        coded = _timed(lambda: model.encode(clips, assignment), device) / ROWS
        routed = _timed(lambda: router(clips), device) / ROWS
    checks = {n: c.train.steps // c.train.validate_every for n, c in settings.items()
              if hasattr(c, "train")}  # fmt: skip
    forward = sum(v for n, v in clip_flops(model, assignment[1].tolist()).items()
                  if n.startswith("forward/"))  # fmt: skip
    search, tokens = settings["search"], settings["tokens"]
    reading, train, test = _videos(proxy.data)
    searched = search.clips + min(search.held_out_clips or test, test)
    levels, measured = len(model.levels), min(report.clips, test)
    shown = min(proxy.validation_clips, test)
    step, target, length = _generator(settings["generator"], model, tokens, device)
    final, generator = settings["final"], settings["generator"]
    passes = 1 + (tokens.frames is not None)  # given frames are coded again
    sampled = sum(1 + (scale != 1) for scale in report.guidance) + (tokens.frames is not None)
    pictures = checks["generator"] * generator.pictures * 2 * length * target
    seconds = {
        "proxy": reading
        + proxy.train.steps * steps["proxy"]
        + checks["proxy"] * shown * levels * once,
        "search": searched * once * search_flops(model) / forward,
        "router": settings["router"].train.steps * steps["router"]
        + checks["router"] * searched * routed,
        "final": final.train.steps * (steps["proxy"] + routed * final.train.batch_size)
        + checks["final"] * shown * (once + routed),
        "tokens": (train * tokens.windows + test) * (routed + passes * coded),
        "generator": generator.train.steps * step + pictures,
        "report": measured * once * (levels + OTHER_CLIPS) + measured * sampled * length * target,
    }
    seconds[PREFERENCE] = seconds["router"]  # the same network, as many steps
    compiled = {n for n, c in settings.items() if hasattr(c, "train") and c.train.compile}
    return {n: v + STARTING + COMPILING * (n in compiled) for n, v in seconds.items()}


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second of two runs: the first asks for memory."""
    spent = 0.0
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - start
    return spent


def _step(
    module: nn.Module, loss: Callable[[Any], Tensor], config: Any, rows: int, device: torch.device
) -> float:
    """Seconds of an optimiser step on a batch of the settings, from passes of `rows` rows."""
    trainee = Trainee(module, config.optimizer, config.schedule, range(config.steps))
    trainee.prepare(wrapped=False, compiled=False)

    def passes() -> None:
        with bfloat16_autocast(device.type, config.precision == "bf16"):
            value = loss(trainee.net)
        value.backward()

    spent = _timed(passes, device) * config.batch_size / rows
    start = time.perf_counter()
    trainee.clip()
    trainee.update(0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return spent + time.perf_counter() - start


def _generator(
    config: Any, model: VideoTokenizer, tokens: Any, device: torch.device
) -> tuple[float, float, float]:
    """Seconds of a step, seconds of a sampled token, and mean tokens of a clip."""
    settings = model.config
    vocabulary = Vocabulary(
        codebook_size=settings.codebook_size,
        levels=settings.levels,
        num_blocks=model.num_blocks,
        class_names=("video",),
    )
    gpt = GPT(config.model, vocabulary, tokens.frames).to(device)
    length = round(model.num_blocks * (1 + sum(settings.levels) / len(settings.levels)))
    ids = torch.randint(settings.codebook_size, (ROWS * length,), device=device)
    ends = torch.arange(0, ROWS * length + 1, length, dtype=torch.int32, device=device)

    def loss(net: Any) -> Tensor:
        return F.cross_entropy(net(ids, ends).float(), ids)

    step = _step(gpt, loss, config.train, ROWS, device)
    gpt.eval()
    singles = torch.arange(ROWS + 1, dtype=torch.int32, device=device)
    with torch.no_grad():
        token = _timed(lambda: gpt(ids[:ROWS], singles), device) / ROWS
    return step, token, length


def _videos(data: Any) -> tuple[float, int, int]:
    """Seconds to decode all videos, and how many train and test."""
    train, test = (
        [item for source in data.sources for item in source.items(split)]
        for split in ("train", "test")
    )
    start = time.perf_counter()
    if data.cache_dir.is_dir():  # decoded before
        return 0.0, len(train), len(test)
    try:
        read_frames(train[0].path, 0, data.max_frames, data.size)
    except VideoError:  # it is left out and named when all are decoded
        return 0.0, len(train), len(test)
    one = time.perf_counter() - start
    return one * (len(train) + len(test)) / data.workers, len(train), len(test)
