"""Ablation of the tokenizer's loss terms at nano scale (the paper's table 5).

    python -m benchmarks.recipe -o runs/recipe --json

Every variant continues the shipped final tokenizer for the same steps with the same seed and data;
then its tokens are written and the shipped generator continues on them, again alike. Killed, it
goes on where it was. Needs the clips of configs/nano/data.yaml (`evatok pipeline configs/nano
--until arcade`). About ten minutes a variant on two cores.

Quality is measured on held-out clips: PSNR, the distance of the ImageNet network EfficientNet-Lite0
(no LPIPS: its VGG16 is not shipped), FVD[nano], codebook use, and FVD[nano] of samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.encoders.nano import NanoFeatures
from evaluation.perceptual.distance import PerceptualDistance
from evaluation.perceptual.load import load_perceptual
from evatok.core.config import load_config
from evatok.hub import Models, load, load_model, save_model
from evatok.measure.clip_sets import (
    ClipSet,
    Network,
    distances,
    held_out_sets,
    reconstruct_set,
    sampling_rows,
)
from evatok.model_folders import SHIPPED
from evatok.workflows.tokens import TokensConfig, write_shards
from generator.gpt import GPT
from generator.inference.requests import SamplingConfig
from generator.train import GeneratorConfig, GeneratorStage
from tokenizer.model import VideoTokenizer
from tokenizer.search.assigners import make_assigner
from tokenizer.training.tokenizer_stage import FinalConfig, TokenizerStage
from training.loop import train

CONFIGS = Path("configs/nano")
OFF = {"discriminator": "adversarial.weight=0", "alignment": "alignment.weight=0"}
VARIANTS = {
    "full recipe": (),
    "− semantic discriminator": ("discriminator",),
    "− alignment": ("alignment",),
    "− both": ("discriminator", "alignment"),
}


def fine_tuning(steps: int) -> list[str]:
    """Overrides: so many steps from weights that are trained already."""
    return [
        f"train.steps={steps}",
        "train.schedule.warmup_steps=20",
        "train.batch_size=16",
        "train.save_every=100",
        "train.validate_every=0",
        "start_from_data=false",
        "train.optimizer.lr=1e-3",
        "train.optimizer.muon_lr=2e-3",
    ]


def tokenizer_of(folder: Path, overrides: Sequence[str]) -> None:
    """Train folder/final from the shipped final tokenizer."""
    router = f"router={SHIPPED / 'nano' / 'router'}"
    config = load_config(FinalConfig, CONFIGS / "recipe.yaml", [*overrides, router])
    stage = TokenizerStage(config)
    stage.tokenizer.load_state_dict(load("nano").final.state_dict())
    trained = train(stage, config.train, folder / "training", config)
    save_model(stage.exported(trained), folder / "final")


def generator_of(folder: Path, steps: int, windows: int) -> None:
    """Write folder/tokens and train folder/generator on them from the shipped generator."""
    tokens = load_config(
        TokensConfig,
        CONFIGS / "tokens.yaml",
        [
            f"tokenizer={folder / 'final'}",
            f"router={SHIPPED / 'nano' / 'router'}",
            f"windows={windows}",
        ],
    )
    write_shards(tokens, folder / "tokens")
    config = load_config(
        GeneratorConfig,
        CONFIGS / "generator.yaml",
        [
            f"tokens={folder / 'tokens'}",
            f"tokenizer={folder / 'final'}",
            f"train.steps={steps}",
            "train.validate_every=0",
            "train.ema_decay=0.98",
        ],
    )
    stage = GeneratorStage(config)
    model: nn.Module = stage.model
    model.load_state_dict(load("nano").generator.state_dict())
    save_model(
        stage.exported(train(stage, config.train, folder / "generating", config)),
        folder / "generator",
    )


class Variant(Models):
    """The shipped parts, with a final tokenizer and a generator of one's own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SHIPPED / "nano")
        self.final = load_model(VideoTokenizer, folder / "final")
        self.generator = load_model(GPT, folder / "generator")


@torch.no_grad()
def measure(models: Models, sets: Sequence[ClipSet], seen: PerceptualDistance) -> list[dict]:
    """A row for each set."""
    networks = [Network(NanoFeatures(models.features))]
    settings = SamplingConfig(guidance=2.0)
    sampled = {
        row["set"]: row for row in sampling_rows(models, sets, networks, settings, (2.0,), 0)
    }
    rows = []
    for real in sets:
        model = models.final
        done = reconstruct_set(model, make_assigner("router", model, models.router), real)
        pairs = zip(real.batches(), done.clips.batches(), strict=True)
        rows.append(
            {
                "set": real.name,
                **done.row(model.config.codebook_size),
                seen.name: float(torch.cat([seen(x, y) for x, y in pairs]).mean()),
                **distances(real, done.clips, networks),
                "samples fvd[nano]": sampled[real.name]["fvd[nano]"],
                "num_clips": len(real),
            }
        )
    return rows


def main() -> None:
    """Train and measure every variant; writes recipe.json and recipe.md."""
    parser = argparse.ArgumentParser(description="The recipe, term by term.")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--steps", type=int, default=100, help="of each tokenizer, 16 clips each")
    parser.add_argument("--generator-steps", type=int, default=100)
    parser.add_argument("--windows", type=int, default=1, help="clips of each training video")
    parser.add_argument("--clips", type=int, default=240, help="held-out clips of each set")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    arguments = parser.parse_args()
    config = load_config(FinalConfig, CONFIGS / "recipe.yaml")
    sets = held_out_sets(config.data, arguments.clips)
    seen = load_perceptual("efficientnet-lite0")
    rows: list[dict[str, Any]] = []
    for name, without in VARIANTS.items():
        folder = arguments.output / ("-".join(("no", *without)) if without else "full")
        overrides = [*fine_tuning(arguments.steps), *[OFF[part] for part in without]]
        tokenizer_of(folder, overrides)
        generator_of(folder, arguments.generator_steps, arguments.windows)
        rows += [{"recipe": name, **row} for row in measure(Variant(folder), sets, seen)]
        (folder.parent / "recipe.json").write_text(json.dumps(rows, indent=1))
        (folder.parent / "recipe.md").write_text(table(rows))
    print(table(rows))
    if arguments.json:
        print(json.dumps({"rows": rows, "steps": arguments.steps}))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    for row in rows:
        lines.append(" | ".join(f"{v:.4g}" if isinstance(v, float) else str(v)
                                for v in row.values()))  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
