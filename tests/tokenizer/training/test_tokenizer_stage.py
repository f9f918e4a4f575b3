"""The trained stages on toy videos: what they draw, learn, and keep alive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from evatok.core.config import load_config
from tests.tokenizer.videos import striped_videos
from tokenizer.losses.reconstruction import LossConfig, tokenizer_loss
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.reward import rewards
from tokenizer.search.table import curate
from tokenizer.training.router_stage import RouterStage, RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig, TokenizerStage
from training.loop import train
from video.dataset import ClipSampler, DataConfig, Window


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return striped_videos(tmp_path, 6, 16)


def settings(data: dict[str, Any], steps: int = 40) -> dict[str, Any]:
    former = {"width": 32, "layers": 1, "heads": 2}
    return {
        "data": data,
        "model": {
            "levels": [1, 4],
            "num_frames": 12,
            "size": 16,
            "encoder": former,
            "decoder": former,
            "codebook_size": 32,
            "decoder_start": "aligned",
        },
        "loss": {"l1": 0.5, "l2": 1.0},
        "codebook": {"restart_every": 10},
        "start_from_data": True,
        "validation_clips": 6,
        "train": {
            "steps": steps,
            "batch_size": 6,
            "save_every": 0,
            "validate_every": 0,
            "optimizer": {"lr": 3e-3},
        },
    }


def test_a_toy_proxy_learns_and_uses_its_codes(data: dict[str, Any], tmp_path: Path) -> None:
    config = ProxyConfig.model_validate(settings(data, 120))
    stage = TokenizerStage(config)
    before = stage.validate(stage.tokenizer.eval(), 0).scalars
    model = train(stage, config.train, tmp_path / "run", config)
    after = stage.validate(model, 120)
    assert after.scalars["psnr_uniform_4"] > before["psnr_uniform_4"] + 3
    assert after.scalars["psnr_uniform_4"] > after.scalars["psnr_uniform_1"]
    assert after.scalars["moving_psnr_uniform_4"] > before["moving_psnr_uniform_4"]
    assert after.scalars["codebook_use"] > 0.5
    assert after.images["reconstructions"].shape == (16 * 3, 16 * 6, 3)


def test_batches_do_not_depend_on_the_number_of_processes(data: dict[str, Any]) -> None:
    stage = TokenizerStage(ProxyConfig.model_validate(settings(data)))
    clips, assignment = stage.batch(3, 0, 1)
    parts = [stage.batch(3, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([p[0] for p in parts]), torch.cat([clips[0::2], clips[1::2]]))
    assert torch.equal(
        torch.cat([p[1] for p in parts]), torch.cat([assignment[0::2], assignment[1::2]])
    )
    assert not torch.equal(stage.batch(4, 0, 1)[1], assignment)


def test_a_final_tokenizer_trains_on_one_level(data: dict[str, Any]) -> None:
    config = FinalConfig.model_validate(settings(data) | {"stage": "final", "uniform": 4})
    stage = TokenizerStage(config)
    assert torch.equal(stage.batch(0, 0, 1)[1], torch.full((6, 3), 4))
    scalars = stage.validate(stage.tokenizer.eval(), 0).scalars
    assert [name for name in scalars if name.startswith("psnr")] == ["psnr_uniform_4"]


def test_assignments_are_uniform_and_shared_as_configured(data: dict[str, Any]) -> None:
    stage = TokenizerStage(ProxyConfig.model_validate(settings(data)))
    many = torch.cat([stage.batch(step, 0, 1)[1] for step in range(100)])
    assert len(many.unique(dim=0)) == 8
    assert ((many == 4).float().mean(0) - 0.5).abs().max() < 0.1
    few = TokenizerStage(ProxyConfig.model_validate(settings(data) | {"assignments_per_batch": 2}))
    assert len(few.batch(0, 0, 1)[1].unique(dim=0)) <= 2


@pytest.mark.parametrize("term", ["l1", "l2", "log_l2", "codebook", "commitment", "entropy"])
def test_every_loss_weight_bites(model: VideoTokenizer, clips: Tensor, term: str) -> None:
    result = model.train()(clips, torch.full((5, 3), 4))
    off = {name: 0.0 for name in LossConfig.model_fields if name != "perceptual"}
    total, terms = tokenizer_loss(result, clips, LossConfig.model_validate(off | {term: 2.0}))
    value = float(total.detach())
    assert list(terms) == [term] and value == pytest.approx(2 * float(terms[term])) != 0
    with pytest.raises(ValueError, match="every loss weight is 0"):
        tokenizer_loss(result, clips, LossConfig.model_validate(off))


def searched_with(data: dict[str, Any]) -> VideoTokenizer:
    """A proxy of fixed weights."""
    torch.manual_seed(0)
    return TokenizerStage(ProxyConfig.model_validate(settings(data))).tokenizer.eval()


def training_clips(sampler: ClipSampler, number: int) -> tuple[Tensor, list[str]]:
    """Batch `number` of a search with seed 5, and the clips' names."""
    clips, _, windows = sampler.batch(number, 6, 5)
    return clips, [sampler.name(window) for window in windows]


def test_search_router_and_final_follow_each_other(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, sampler = searched_with(data), ClipSampler(DataConfig.model_validate(data), "train")

    def held_out(number: int) -> tuple[Tensor, list[str]]:
        windows = sampler.eval_clips()[6 * number : 6 * number + 6]
        return sampler.load(windows)[0], [sampler.name(window) for window in windows]

    assert list(curate(proxy, partial(training_clips, sampler), 2, tmp_path / "table")) == [6, 12]
    list(curate(proxy, held_out, 1, tmp_path / "held"))
    config = RouterTraining.model_validate(
        {
            "data": data,
            "model": {
                "levels": [1, 4], "num_frames": 12, "size": 16,
                "width": 32, "layers": 1, "heads": 2,
            },
            "table": tmp_path / "table",
            "held_out_table": tmp_path / "held",
            "search_batch": 6,
            "search_seed": 5,
            "w_q": 1.7,
            "target_temperature": 0.05,
            "train": settings(data, 60)["train"],
        }
    )  # fmt: skip
    read: list[Window] = []
    real = ClipSampler._frames
    with monkeypatch.context() as patch:
        patch.setattr(ClipSampler, "_frames", lambda self, w: read.append(w) or real(self, w))
        stage = RouterStage(config)
        assert not read  # a table may be of more clips than the memory holds
        stage.batch(0, 0, 2)
        assert len(read) == 3
    clips = sampler.batch(1, 6, 5)[0]
    assert torch.equal(stage.clips(range(6, 12)), clips)  # the searched clips, in order
    with pytest.raises(ValueError, match="set w_q"):
        twice = config.model.model_dump() | {"w_q": 0.5}
        RouterTraining.model_validate(config.model_dump() | {"model": twice})
    with pytest.raises(ValueError, match="the table has mse, not lpips"):
        RouterStage(RouterTraining.model_validate(config.model_dump() | {"quality": "lpips"}))
    more = config.model.model_dump() | {"levels": [1, 2, 4]}
    with pytest.raises(ValueError, match=r"has 8 candidates a clip; a router of .* has 27"):
        RouterStage(RouterTraining.model_validate(config.model_dump() | {"model": more}))
    with pytest.raises(ValueError, match=r"with model\.preference"):
        RouterTraining.model_validate(config.model_dump() | {"w_q_range": (1.0, 2.0)})
    conditioned = {"preference": True} | config.model.model_dump(exclude={"preference"})
    stage = RouterStage(RouterTraining.model_validate(config.model_dump() | {"model": conditioned}))
    _, table, w_q = stage.batch(0, 0, 1)
    assert w_q.min() >= 0.4 and w_q.max() <= 2 and w_q.std() > 0.1
    for row, weight in zip(table, w_q.tolist(), strict=True):
        whole = rewards(stage.quality, stage.lengths, stage.standard, weight).float()
        assert any(torch.equal(row, one) for one in whole)
    curve = stage.validate(stage.model, 0).scalars
    assert {"percentile", "percentile_0.4", "percentile_1.2", "percentile_2.0"} <= set(curve)
    router = train(stage, config.train, tmp_path / "router", config)
    scores = stage.validate(router, 60).scalars
    assert scores["percentile"] > 90
    assert scores["percentile"] >= scores["best_uniform_percentile"] - 5
    assert isinstance(router, Router)
    router.save_pretrained(tmp_path / "router" / "model")
    final = FinalConfig.model_validate(
        settings(data, 3) | {"stage": "final", "router": tmp_path / "router" / "model"}
    )
    last = TokenizerStage(final)
    batch = last.batch(0, 0, 1)
    assert torch.equal(last.assigned(batch), router.assign(*batch))
    model = train(last, final.train, tmp_path / "final", final)
    assert "psnr_router" in last.validate(model, 3).scalars


def test_a_router_learns_from_some_candidates_of_each_clip(
    data: dict[str, Any], tmp_path: Path
) -> None:
    """Loss, gradient and standard are those of what was searched; held-out clips need all."""
    proxy, sampler = searched_with(data), ClipSampler(DataConfig.model_validate(data), "train")
    searched_clips = partial(training_clips, sampler)
    list(curate(proxy, searched_clips, 2, tmp_path / "table", candidates=4, seed=5))
    words = {
        "data": data,
        "model": {
            "levels": [1, 4], "num_frames": 12, "size": 16, "width": 32, "layers": 1, "heads": 2,
        },
        "table": tmp_path / "table",
        "search_batch": 6,
        "search_seed": 5,
        "w_q": 1.7,
        "train": settings(data, 2)["train"],
    }  # fmt: skip
    for temperature in (0.0, 0.1):
        config = RouterTraining.model_validate(words | {"target_temperature": temperature})
        stage = RouterStage(config)
        searched = stage.quality[~stage.quality.isnan()].double()
        assert len(searched) == 12 * 4
        assert stage.standard.mean_quality == pytest.approx(float(searched.mean()))
        batch = clips, table, _ = stage.batch(0, 0, 1)
        missing = table.isnan()
        assert (missing.sum(1) == 4).all()
        loss, terms = stage.loss(stage.model, batch, torch.Generator())
        logits = stage.model(clips)
        expected = []
        for row, known in zip(range(len(clips)), ~missing, strict=True):
            shares = logits[row, known].log_softmax(-1)
            goal = table[row, known]
            wanted = F.one_hot(goal.argmax(), 4).float()
            wanted = (goal / temperature).softmax(-1) if temperature else wanted
            expected.append(-(wanted * shares).sum())
        torch.testing.assert_close(loss, torch.stack(expected).mean())
        assert 0 <= terms["percentile"] <= 100
        (gradient,) = torch.autograd.grad(loss, stage.model.get_parameter("head.bias"))
        assert gradient.isfinite().all() and (gradient[missing.all(0)] == 0).all()
    held = RouterTraining.model_validate(words | {"held_out_table": tmp_path / "table"})
    with pytest.raises(ValueError, match="was searched with `candidates`; all of them are needed"):
        RouterStage(held)


class Seen:
    """A distance that notes what it was shown: the mean absolute difference."""

    name, checksum = "seen", "0"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return (x - y).abs().mean((1, 2, 3, 4))

    def prepare(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: self(x, y)


def test_the_perceptual_term_bites(model: VideoTokenizer, clips: Tensor) -> None:
    result = model.train()(clips, torch.full((5, 3), 4))
    plain, _ = tokenizer_loss(result, clips, LossConfig())
    distance = Seen()
    config = LossConfig.model_validate({"perceptual": {"weight": 3.0}})
    total, terms = tokenizer_loss(result, clips, config, distance)
    assert float((total - plain).detach()) == pytest.approx(3 * float(terms["seen"]), rel=1e-4)
    assert distance.shapes == [tuple(clips.shape)]

    config = LossConfig.model_validate({"perceptual": {"weight": 3.0, "frames": 2}})
    drawn = [
        float(tokenizer_loss(result, clips, config, distance, random(seed))[1]["seen"])
        for seed in (0, 0, 1)
    ]
    assert distance.shapes[-1] == (*clips.shape[:2], 2, *clips.shape[3:])
    assert drawn[0] == drawn[1] != drawn[2]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_perceptual_network_is_loaded_only_with_a_weight(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "tokenizer.losses.reconstruction.load_perceptual",
        lambda *names: asked.append(names) or Seen(),
    )
    config = ProxyConfig.model_validate(settings(data, 2))
    assert TokenizerStage(config).perceptual is None and not asked
    loss = {"perceptual": {"network": "efficientnet-lite0", "weight": 0.5, "path": "here"}}
    config = ProxyConfig.model_validate(settings(data, 2) | {"loss": loss})
    stage = TokenizerStage(config)
    assert asked == [("efficientnet-lite0", Path("here"))]
    train(stage, config.train, tmp_path / "run", config)
    assert '"seen":' in (tmp_path / "run" / "log.jsonl").read_text()


def test_training_settings_bite(data: dict[str, Any], tmp_path: Path) -> None:
    """The decay of the average, augmentation, rate and seed: each changes the trained weights."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("train", {}),
        ("train", {"ema_decay": 0.5}),
        ("train", {"ema_decay": 0.9}),
        ("train", {"seed": 1}),
        ("train", {"grad_accumulation": 2, "batch_size": 4}),
        ("train", {"optimizer": {"lr": 3e-3, "weight_decay": 0.5}}),
        ("train", {"optimizer": {"lr": 3e-3, "grad_clip": 1e-3}}),
        ("train", {"optimizer": {"lr": 3e-3}, "schedule": {"name": "constant"}}),
        ("data", {"flip": True}),
        ("codebook", {"restart_every": 3, "restart_below": 1.0}),
        ("loss", {"l1": 0.5, "l2": 1.0, "entropy": 0.5}),
    ]
    trained = []
    for number, (part, change) in enumerate(changes):
        base = settings(data, 12)
        config = ProxyConfig.model_validate(base | {part: base[part] | change})
        stage = TokenizerStage(config)
        model = stage.exported(train(stage, config.train, tmp_path / str(number), config))
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for number, weights in enumerate(trained):
        for other in range(number):
            assert not torch.equal(weights, trained[other]), (changes[number], changes[other])


def test_a_tokenizer_of_pictures_trains_by_its_settings(tmp_path: Path) -> None:
    """`configs/nano/images.yaml`, smaller: one block of one frame, a level for each picture."""
    colours = torch.randint(0, 255, (8, 3), generator=torch.Generator().manual_seed(0))
    for number, colour in enumerate(colours.tolist()):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), tuple(colour)).save(path)
    root = Path(__file__).resolve().parents[3]
    changes = (
        f"data.cache_dir={tmp_path / 'cache'}",
        "model.encoder={width: 32, layers: 1, heads: 2}",
        "model.decoder={width: 32, layers: 1, heads: 2}",
        "train.steps=12",
        "train.batch_size=8",
        "train.precision=fp32",
        "train.compile=false",
        "train.save_every=0",
        "train.validate_every=0",
        "validation_clips=8",
    )
    config = load_config(ProxyConfig, root / "configs" / "nano" / "images.yaml", changes)
    source = config.data.sources[0].model_copy(update={"root": tmp_path / "pictures"})
    data = config.data.model_copy(update={"sources": (source,)})
    config = config.model_copy(update={"data": data})
    stage = TokenizerStage(config)
    clips, assignment = stage.batch(0, 0, 1)
    assert clips.shape == (8, 3, 1, 64, 64) and assignment.shape == (8, 1)
    before = stage.validate(stage.tokenizer.eval(), 0).scalars
    model = train(stage, config.train, tmp_path / "run", config)
    assert stage.validate(model, 12).scalars["psnr_uniform_64"] > before["psnr_uniform_64"] + 1


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_decoder_trains_alone(data: dict[str, Any], tmp_path: Path, adversarial: bool) -> None:
    """Tokens, and every weight behind them, stay to the bit; its layers may be more."""
    base = settings(data, 3) | {"start_from_data": False, "stage": "final", "uniform": 4}
    torch.manual_seed(1)
    source = VideoTokenizer(FinalConfig.model_validate(base).model).eval()
    source.save_pretrained(tmp_path / "model")
    alone = base | {"start_from": tmp_path / "model", "trained": "decoder"}
    with pytest.raises(
        ValueError, match=r"set loss\.codebook, loss\.commitment, loss\.entropy, cod"
    ):
        FinalConfig.model_validate(alone)
    alone["loss"] = {"l1": 1.0, "codebook": 0, "commitment": 0, "entropy": 0}
    alone["codebook"] = {"restart_every": 0}
    if adversarial:
        judge = {"width": 16, "layers": 1, "heads": 2}
        alone["adversarial"] = {"weight": 0.3, "adaptive": True, "discriminator": judge}
    with pytest.raises(ValueError, match="needs start_from"):
        FinalConfig.model_validate(alone | {"start_from": None})
    with pytest.raises(ValueError, match=r"another codebook_size; only decoder\.layers"):
        more = alone["model"] | {"codebook_size": 64}
        TokenizerStage(FinalConfig.model_validate(alone | {"model": more}))
    alone["model"] = base["model"] | {"decoder": base["model"]["decoder"] | {"layers": 2}}
    config = FinalConfig.model_validate(alone)
    stage = TokenizerStage(config)
    model = stage.exported(train(stage, config.train, tmp_path / "run", config))
    assert isinstance(model, VideoTokenizer)
    clips, assignment = stage.batch(0, 0, 1)
    assert torch.equal(model.encode(clips, assignment).ids, source.encode(clips, assignment).ids)
    after = model.state_dict()
    changed = {
        name.split(".")[0] for name, value in source.state_dict().items()
        if not torch.equal(value, after[name])
    }  # fmt: skip
    assert changed == {"code_out", "decoder_places", "start_map", "decoder", "patch_head"}
