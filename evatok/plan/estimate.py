"""Estimate of a training before it begins: parameters, operations, memory, hours, bytes.

Operations are counted (`evatok.plan.flops`), memory is counted but for the activations, which are
estimated, and hours follow from an assumed utilisation. Networks that only a loss uses
(perceptual, alignment, discriminators) are part of operations and of memory without their
activations.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evatok.core.config import TrainConfig, find_settings, load_config, read_yaml
from evatok.core.errors import EvatokError, MissingFileError
from evatok.plan import flops as costs
from evatok.plan.training_networks import perceptual_flops, training_only, training_only_flops
from evatok.plan.untrained import model_of
from evatok.workflows.search import SearchConfig
from evatok.workflows.train import STAGES, load_training
from generator.conditions import Condition
from generator.data.token_set import TokenSet
from generator.gpt import GPT
from generator.train import GeneratorConfig
from tokenizer.model import TokenizerConfig, VideoTokenizer
from tokenizer.router import Router, RouterConfig
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig
from video.clips import sides

ROUTED = (512, 128, 64, 64)  # 768 tokens, near the paper's 721 and 774: what a router may choose
MFU = 0.35  # share of the peak that a training reaches, unless the caller knows better
GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """One accelerator: dense 16-bit tensor-core peak in FLOP/s, memory in GB."""

    peak: float
    memory: float


# NVIDIA's data sheets, without sparsity: H100 SXM5, H200 SXM, A100 SXM4 80 GB, L40S, V100 SXM2
# 32 GB (float16; it has no bf16), GeForce RTX 4090 (float32 accumulation).
GPUS = {
    "h100": Gpu(989.4e12, 80),
    "h200": Gpu(989.4e12, 141),
    "a100": Gpu(312e12, 80),
    "l40s": Gpu(362e12, 48),
    "v100": Gpu(125e12, 32),
    "rtx4090": Gpu(165.2e12, 24),
}

# Table 7, V100: GPUs × hours.
PAPER_HOURS = {
    "webvid/proxy": 64 * 116,
    "webvid/search": 256 * 12.5,
    "webvid/router": 32 * 5,
    "webvid/final-semantic": 64 * 347,
    "ucf101/generator-633m": 64 * 88,
    "k600/generator-633m": 64 * 140,
}
ORDER = ("proxy", "search", "router", "preference", "final-semantic", "final", "final-wide",
         "generator-633m", "generator")  # fmt: skip


def plan(
    path: Path, num_gpus: int = 1, gpu: str = "h100", mfu: float = MFU, checkpointing: bool = False
) -> dict[str, Any]:
    """Plan one settings file, or the stages of a folder of them.

    Args:
        path: settings of a training or a search, or a folder.
        num_gpus: that share a step's batch; each holds all weights.
        gpu: a name of `GPUS`.
        mfu: share of the GPU's peak, in (0, 1].
        checkpointing: keep the input of each layer only, and compute layers twice.

    Returns:
        JSON-able.

    Raises:
        EvatokError: no such GPU, or numbers out of range.
        FileNotFoundError: neither a file nor a folder with settings.
        ConfigError: settings that cannot be used.
    """
    if gpu not in GPUS:
        raise EvatokError(f"--gpu {gpu!r} is not one of {', '.join(GPUS)}")
    if num_gpus < 1:
        raise EvatokError(f"--gpus {num_gpus} is not 1 or more")
    if not 0 < mfu <= 1:
        raise EvatokError(f"--mfu {mfu} is not in (0, 1]")
    assumed = {"gpu": gpu, "gpus": num_gpus, "mfu": mfu, "peak_tflops": GPUS[gpu].peak / 1e12}
    path = find_settings(path)
    if path.is_dir():
        return {"folder": str(path)} | assumed | _folder(path, num_gpus, gpu, mfu, checkpointing)
    if read_yaml(path).get("stage") == "search":
        return {"config": str(path)} | assumed | _search(path, num_gpus, gpu, mfu)
    config: Any = load_training(path)
    with torch.device("meta"):  # sizes only
        model = model_of(config)
    per_row, rows, places = _row_costs(config, model)
    train: TrainConfig = config.train
    step = rows * sum(v for name, v in per_row.items() if name.startswith("train/"))
    if checkpointing:
        step += rows * sum(v for name, v in per_row.items() if name.startswith("forward/"))
    hours = step * train.steps / (num_gpus * GPUS[gpu].peak * mfu) / 3600
    per_gpu = -(-rows // (num_gpus * train.grad_accumulation))
    apart = training_only(config) if isinstance(model, VideoTokenizer) else []
    memory = _memory(model, train, per_gpu, places, checkpointing, apart)
    return (
        {"config": str(path), "stage": config.stage}
        | assumed
        | {
            "parameters": _parameters(model),
            **({"training_only": apart} if apart else {}),
            "flops_a_step": {
                **{n.partition("/")[2]: rows * v for n, v in per_row.items() if n[:6] == "train/"},
                "all": step,
            },
            "steps": train.steps,
            "rows_a_step": rows,
            "hours": round(hours, 2),
            "gpu_hours": round(hours * num_gpus, 1),
            "memory_gib": memory,
            "fits": memory["all"] * GIB < GPUS[gpu].memory * 1e9,
            "bytes": _bytes(config, model),
        }
    )


def _parameters(model: nn.Module) -> dict[str, int]:
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    total = sum(p.numel() for p in model.parameters())
    loose = total - sum(counts.values())
    return counts | ({"other": loose} if loose else {}) | {"all": total}


def _row_costs(config: Any, model: nn.Module) -> tuple[Counter[str], int, dict[str, float]]:
    """Operations of a row of a batch, rows of a step, and places that keep activations in a row.

    A place is one token in one layer; they are given by the layer's width, plus "scores", numbers
    of a table over the codebook or the vocabulary.
    """
    rows = config.train.batch_size
    if isinstance(model, VideoTokenizer):
        assignments = _assignments(config, model)
        costs_: Counter[str] = Counter()
        for row in assignments:
            costs_.update(costs.clip_flops(model, row, has_entropy=config.loss.entropy > 0))
        per_row = Counter({name: value // len(assignments) for name, value in costs_.items()})
        if isinstance(config, FinalConfig) and config.router is not None:
            per_row["train/router"] = _router_forward(model)  # frozen: no gradient
        for name, value in training_only_flops(config).items():
            per_row[f"train/{name}"] = value
        tokens = sum(map(sum, assignments)) / len(assignments)
        cells, size = model.num_cells * model.num_blocks, model.config
        places = {
            "encoder": (tokens + 0.3 * cells) * size.encoder.layers * size.encoder.width,
            "decoder": (cells + 0.3 * tokens) * size.decoder.layers * size.decoder.width,
            "scores": 3 * tokens * size.codebook_size,  # cosines, log p and p
        }
        return per_row, rows, places
    if isinstance(model, Router):
        size = model.config
        return (
            costs.router_flops(model),
            rows,
            {"layers": (model.position.shape[0] + 1) * size.layers * size.width},
        )
    if isinstance(model, GPT) and isinstance(config, GeneratorConfig):
        length, condition = _lengths(config, model)
        places = {
            "layers": length * model.size.layers * model.size.width,
            "scores": 3 * (length - condition) * model.vocabulary.size,
        }
        return costs.sequence_flops(model, length, length - condition), rows, places
    raise EvatokError(f"stage {config.stage!r} cannot be planned; proxy, router, final, generator")


def _router_forward(model: VideoTokenizer) -> int:
    """Of a router of the paper's size on the tokenizer's patches."""
    own = model.config
    size = RouterConfig(
        levels=own.levels, num_frames=own.num_frames, size=own.size, patch=own.patch
    )
    with torch.device("meta"):
        return costs.router_flops(Router(size))["forward/router"]


def _assignments(config: Any, model: VideoTokenizer) -> list[list[int]]:
    """Assignments whose mean is a batch's: all candidates, one level, or a guess at a router's."""
    if isinstance(config, ProxyConfig):
        return model.levels.candidates(model.num_blocks).tolist()
    assert isinstance(config, FinalConfig)
    if config.uniform is not None:
        return [[config.uniform] * model.num_blocks]
    values = model.levels.values
    if model.num_blocks == len(ROUTED) and set(ROUTED) <= set(values):
        return [list(ROUTED)]
    return model.levels.candidates(model.num_blocks).tolist()


def _lengths(config: GeneratorConfig, model: GPT) -> tuple[float, int]:
    """Mean tokens of a sequence, and of its condition."""
    condition, kind = 1, Condition.CLASS
    if model.frames is not None and config.frame_share == 1:
        condition, kind = model.frames.num_tokens, Condition.FRAMES
    if config.expect is not None:
        return config.expect.mean_length, condition
    tokens = TokenSet(config.tokens / "train")
    return float(tokens.lengths(kind).mean()), condition


def _memory(
    model: nn.Module,
    train: TrainConfig,
    rows: int,
    places: dict[str, float],
    checkpointing: bool,
    apart: list[dict[str, Any]],
) -> dict[str, float]:
    """GiB of one process: float32 weights, gradients, AdamW's two moments, the average.

    What only the loss uses is one part, `training_only`: weights, and for what is trained of it
    gradients and moments; not its activations.

    Activations: 34 bytes for a place of a plain layer in 16 bits (Korthikanti et al.,
    arXiv:2205.05198, without attention scores), a third more for a Q-Former's; 4 with
    checkpointing, where only inputs are kept. Tables over the codebook or vocabulary are float32.
    """
    count = sum(p.numel() for p in model.parameters())
    scale = 1 if train.precision == "bf16" else 2
    each = 45 if isinstance(model, VideoTokenizer) else 34
    kept = sum(value for name, value in places.items() if name != "scores")
    layers = kept * (4 if checkpointing else each * scale)
    parts = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": 8 * count,
        "average": 4 * count if train.ema_decay else 0,
        "training_only": sum(row["parameters"] * (16 if row["trained"] else 4) for row in apart),
        "activations": rows * layers,
        "tables": rows * 4 * places.get("scores", 0.0),
    }
    out = {name: round(value / GIB, 2) for name, value in parts.items()}
    return out | {"all": round(sum(parts.values()) / GIB, 2), "rows_a_gpu": rows}


def _bytes(config: Any, model: nn.Module) -> dict[str, Any]:
    count = sum(p.numel() for p in model.parameters())
    one = 4 * count * (4 if config.train.ema_decay else 3)  # weights, two moments, average
    out: dict[str, Any] = {
        "checkpoint": one,
        "checkpoints_kept": one * config.train.keep_checkpoints,
        "model": 4 * count,
    }
    if isinstance(config, GeneratorConfig) and isinstance(model, GPT):
        width = 2 if model.vocabulary.size <= 1 << 16 else 4
        out["tokens_a_clip"] = round(width * _lengths(config, model)[0])
    return out


def _search(path: Path, num_gpus: int, gpu: str, mfu: float) -> dict[str, Any]:
    """Stage 2 with the proxy beside the file, perceptual columns included.

    Such a network sees each real block once, and each block that the tree decodes; by brute force
    the blocks of all candidates.
    """
    config = load_config(SearchConfig, path)
    beside = path.parent / "proxy.yaml"
    proxy: Any = load_training(beside)
    assert isinstance(proxy.model, TokenizerConfig)
    with torch.device("meta"):
        model = VideoTokenizer(proxy.model)
    every, drawn = model.levels.num_candidates(model.num_blocks), config.candidates
    brute = sum(
        value
        for row in model.levels.candidates(model.num_blocks).tolist()
        for name, value in costs.clip_flops(model, row).items()
        if name.startswith("forward/")
    )
    nodes = [len(model.levels) ** depth for depth in range(1, model.num_blocks + 1)]
    measures = {
        name: perceptual_flops(name, proxy.model.patch[0], sides(proxy.model.size))
        for name in config.quality
        if name != "moving_mse"
    }

    def a_clip(candidates: int | None) -> tuple[dict[str, int], dict[str, float]]:
        """By each method, operations of a clip and blocks that a perceptual network sees."""
        shares = costs.prefix_shares(model, candidates)
        part = (candidates or every) / every
        seen = {
            "tree": model.num_blocks + sum(a * b for a, b in zip(shares, nodes, strict=True)),
            "brute": model.num_blocks * (1 + part * every),
        }
        flops = {"tree": costs.search_flops(model, candidates), "brute": part * brute}
        extra = sum(measures.values())
        return {name: round(flops[name] + seen[name] * extra) for name in seen}, seen

    held = config.held_out_clips or 0
    clips = config.clips + held
    flops, seen = a_clip(drawn)
    work = config.clips * flops[config.method] + held * a_clip(None)[0][config.method]
    hours = work / (num_gpus * GPUS[gpu].peak * mfu) / 3600
    return {
        "stage": "search",
        "clips": clips,
        "flops_a_clip": flops | {"ratio": round(flops["tree"] / flops["brute"], 3)},
        "perceptual_flops_a_clip": {
            name: round(seen[config.method] * value) for name, value in measures.items()
        },
        "hours": round(hours, 2),
        "gpu_hours": round(hours * num_gpus, 1),
        "bytes": {"table": clips * every * 4 * (1 + len(config.quality))},
    }


def _folder(path: Path, num_gpus: int, gpu: str, mfu: float, checkpointing: bool) -> dict[str, Any]:
    """The stages of a folder beside the paper's hours on V100."""
    wanted = [name for name in ORDER if (path / f"{name}.yaml").is_file()]
    for better, other in (("final-semantic", "final"), ("generator-633m", "generator")):
        if better in wanted and other in wanted:
            wanted.remove(other)
    rows = []
    for name in wanted:
        file = path / f"{name}.yaml"
        if read_yaml(file).get("stage") not in (*STAGES, "search"):
            continue
        result = plan(file, num_gpus, gpu, mfu, checkpointing)
        flops = result.get("flops_a_step", {}).get("all", 0) * result.get("steps", 0)
        flops = flops or result["clips"] * result["flops_a_clip"]["tree"]
        paper = PAPER_HOURS.get(f"{path.resolve().name}/{name}")
        rows.append(
            {
                "stage": name,
                "exaflop": round(flops / 1e18, 1),
                "hours": result["hours"],
                "gpu_hours": result["gpu_hours"],
                "paper_v100_hours": paper,
            }
        )
    if not rows:
        raise MissingFileError(f"{path} holds no settings of a stage")
    return {
        "stages": rows,
        "gpu_hours": round(sum(row["gpu_hours"] for row in rows), 1),
        "paper_v100_hours": sum(row["paper_v100_hours"] or 0 for row in rows) or None,
    }
