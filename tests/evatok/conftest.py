"""A toy family: moving squares in the UCF-101 layout, and untrained parts that fit each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.encoders.nano import NanoNet
from evatok.hub import Models, load, save_model
from evatok.workflows.captions import Thresholds
from evatok.workflows.text import Captioner, save_text
from generator.conditions import FrameCondition, TextCondition
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.router import Router, RouterConfig
from video.writing import write_video

SIZE, FRAMES, LEVELS = 32, 16, (1, 2, 4)
CLASSES = ("Left", "Right")


def moving_square(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """(F, H, W, 3) uint8: a bright square that crosses a dark picture."""
    random = np.random.default_rng(seed)
    frames = np.full((num_frames, height, width, 3), random.integers(0, 60, 3), np.uint8)
    side, top = max(2, height // 4), int(random.integers(0, height - height // 4))
    for index, frame in enumerate(frames):
        left = (index * max(1, width // 20) + seed * 3) % (width - side + 1)
        frame[top : top + side, left : left + side] = random.integers(150, 255, 3)
    return frames


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the UCF-101 layout: 2 classes, 6 training and 4 test files each, 16 frames."""
    root = tmp_path_factory.mktemp("data") / "squares"
    train, test = [], []
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(10):
            group = 8 + number if number < 6 else number - 5
            path = f"{name}/v_{name}_g{group:02d}_c01.mp4"
            frames = moving_square(FRAMES, SIZE, SIZE, 100 * label + number)
            write_video(root / path, frames if label else frames[::-1].copy(), 15, crf=10)
            (train if number < 6 else test).append(path)
    (root / "classInd.txt").write_text("1 Left\n2 Right\n")
    lines = [f"{path} {1 + ('Right' in path)}" for path in train]
    (root / "trainlist01.txt").write_text("\n".join(lines) + "\n")
    (root / "testlist01.txt").write_text("\n".join(test) + "\n")
    return root


def toy_tokenizer(seed: int) -> VideoTokenizer:
    torch.manual_seed(seed)
    former = QFormerConfig(width=16, layers=1, heads=2)
    return VideoTokenizer(
        TokenizerConfig(
            levels=LEVELS,
            num_frames=FRAMES,
            size=SIZE,
            encoder=former,
            decoder=former,
            codebook_size=16,
            code_dim=4,
        )
    )


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all parts, weights at random."""
    root = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    vocabulary = Vocabulary(codebook_size=16, levels=LEVELS, num_blocks=4, class_names=CLASSES)
    router = RouterConfig(levels=LEVELS, num_frames=FRAMES, size=SIZE, width=16, layers=1, heads=2)
    gpt = GPT(
        GPTConfig(width=16, layers=1, heads=2, hidden=32),
        vocabulary,
        FrameCondition(prefix=(4, 1)),
    )
    torch.nn.init.normal_(gpt.head.weight, std=0.5)
    parts = {
        "features": NanoNet(CLASSES, widths=(4, 4, 8, 8), dim=6),
        "proxy": toy_tokenizer(1),
        "router": Router(router),
        "final": toy_tokenizer(2),
        "generator": gpt,
    }
    for name, model in parts.items():
        save_model(model, root / name, half=True)
    return root


@pytest.fixture(scope="session")
def text_dir(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same parts with another generator, which takes texts."""
    root = tmp_path_factory.mktemp("toy-text") / "models"
    shutil.copytree(toy_dir, root)
    texts = ["a bright clip of left", "a dark clip of right with much motion", "left, dim"] * 3
    save_text(texts, 300, Thresholds(brightness=(0.3, 0.6), motion=(0.01, 0.02)), root / "text")
    pieces = Captioner.load(root / "text").pieces
    old = load(toy_dir).generator
    data = old.vocabulary.model_dump() | {"num_text": len(pieces)}
    text = TextCondition(max_pieces=24, digest=pieces.digest)
    torch.manual_seed(0)
    gpt = GPT(old.size, Vocabulary.model_validate(data), old.frames, text)
    torch.nn.init.normal_(gpt.head.weight, std=0.5)
    save_model(gpt, root / "generator", half=True)
    return root


@pytest.fixture(scope="session")
def square() -> Callable[[int, int, int, int], np.ndarray]:
    """`moving_square`, for tests that write videos of their own."""
    return moving_square


@pytest.fixture(scope="session")
def toy(toy_dir: Path) -> Models:
    return load(toy_dir)
