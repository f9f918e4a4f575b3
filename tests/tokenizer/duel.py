"""A tokenizer and its discriminator, trained by one process, by two, and spread over two.

See test_processes.py.
Children are forked after torch is imported. Usage: python duel.py FOLDER
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from frozen import ToyEncoder  # the script's own folder
from torch import Tensor, nn

import tokenizer.semantic
from tokenizer.adversarial import AdversarialConfig, make_game
from tokenizer.losses import LossConfig, tokenizer_loss
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.qformer import QFormerConfig
from tokenizer.semantic import SemanticDiscriminatorConfig
from training.config import TrainConfig
from training.loop import StageBase, train

LOSS = LossConfig()  # the entropy term too, which is a function of the whole batch
ASSIGNMENT = torch.tensor([[4, 4], [1, 4], [4, 1], [1, 1]])  # 13 tokens of rows 0, 2; 7 of 1, 3
TOKENIZER = TokenizerConfig(
    levels=(1, 4),
    num_frames=8,
    size=16,
    encoder=QFormerConfig(width=24, layers=2, heads=2),
    decoder=QFormerConfig(width=24, layers=2, heads=2),
    codebook_size=16,
)
GAME = AdversarialConfig.model_validate(
    {
        "weight": 0.3,
        "lecam": 0.1,
        "lecam_decay": 0.5,
        "adaptive": True,
        "start_step": 1,
        "every": 2,
        "discriminator": {"width": 24, "layers": 1, "heads": 2},
        "optimizer": {"lr": 1e-3},
    }
)
RUN = TrainConfig.model_validate(
    {"steps": 6, "batch_size": 4, "log_every": 1, "validate_every": 0, "save_every": 0}
)


SEMANTIC = GAME.model_copy(
    update={
        "discriminator": SemanticDiscriminatorConfig(layers=(1, 3), width=8, groups=2, kernel=5)
    }
)
tokenizer.semantic.load_encoder = lambda config: ToyEncoder((2, 3, 3))


class DuelStage(StageBase):
    """Random clips; the wiring of `TokenizerStage` without its videos."""

    def __init__(self, kind: str) -> None:
        self.adversary_config = GAME if kind == "patch" else SEMANTIC
        torch.manual_seed(0)
        self.model: nn.Module = VideoTokenizer(TOKENIZER)
        self.game = make_game(self.adversary_config, TOKENIZER.num_frames, TOKENIZER.size)
        assert self.game is not None
        self.adversary: nn.Module | None = self.game.adversary
        self.made: Tensor | None = None

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        clips = torch.rand(4, 3, 8, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
        return clips[rank::world], ASSIGNMENT[rank::world]

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Any:
        result = model(*batch)
        self.made = result.clips
        return tokenizer_loss(result, batch[0], LOSS)

    def loss_against(
        self, model: nn.Module, adversary: nn.Module, batch: Any, generator: torch.Generator
    ) -> Any:
        others, terms = self.loss(model, batch, generator)
        assert self.game is not None and self.made is not None
        assert isinstance(self.model, VideoTokenizer)
        last = self.model.patch_head.weight
        loss, judged = self.game.generator_side(adversary, batch[0], self.made, others, last)
        return loss, terms | judged

    def adversary_loss(self, adversary: nn.Module, batch: Any, generator: torch.Generator) -> Any:
        assert self.game is not None
        return self.game.discriminator_side(adversary, generator)

    def after_step(self, model: nn.Module, step: int, generator: torch.Generator) -> None:
        assert self.game is not None
        self.game.after_step()


def one(run_dir: Path, rank: int, world: int, port: int, sharding: str, kind: str) -> None:
    """A child's work."""
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["ACCELERATE_USE_CPU"] = "true"
    train(DuelStage(kind), RUN.model_copy(update={"sharding": sharding}), run_dir)


def together(run_dir: Path, world: int, sharding: str, kind: str = "patch") -> None:
    """A run of as many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                one(run_dir, rank, world, port, sharding, kind)
                code = 0
            except BaseException as error:
                print(f"child: {error!r}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"exit codes {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    together(folder / "one", 1, "none")
    together(folder / "two", 2, "none")
    together(folder / "spread", 2, "fsdp")
    together(folder / "semantic-one", 1, "none", "semantic")
    together(folder / "semantic-two", 2, "none", "semantic")
