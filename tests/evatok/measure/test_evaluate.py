"""Protocols run on toy models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.metrics.quality import psnr
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.records import read_records
from evatok.cli.app import main
from evatok.core.config import load_config
from evatok.core.processes.distributed import RankInfo
from evatok.generate.samples import frame_condition
from evatok.hub import load
from evatok.measure import evaluate as face
from evatok.measure import protocol_sides as module
from evatok.measure.evaluate import DataFile, evaluate
from evatok.measure.protocol_sides import EvaluationSettings, draw
from evatok.measure.protocols import PROTOCOLS, DataSet
from video.dataset import DataConfig
from video.reading import read_frames
from video.writing import write_video


class Means:
    name, dim, checksum = "means", 3, "sum"

    def __init__(self, breaks_at: int = 1_000_000) -> None:
        self.seen, self.breaks_at = 0, breaks_at

    def __call__(self, clips: Tensor) -> Tensor:
        self.seen += len(clips)
        if self.seen > self.breaks_at:
            raise KeyboardInterrupt
        return clips.mean((2, 3, 4))


@pytest.fixture
def data(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data.yaml of the squares, which the protocols are made to be meant for."""
    changed = {
        name: protocol.model_copy(update={"data": DataSet(name="squares"), "count": None})
        for name, protocol in PROTOCOLS.items()
    }
    monkeypatch.setattr(face, "PROTOCOLS", changed)
    for one in (face, module):
        monkeypatch.setattr(one, "CHUNK", 3)
    path = tmp_path / "data.yaml"
    path.write_text(
        f"data:\n  size: 32\n  cache_dir: {tmp_path / 'cache'}\n  sources:\n"
        f"    - {{kind: ucf101, root: {footage}}}\n"
    )
    return path


@pytest.mark.parametrize("kind", ["rfvd", "gfvd", "fp"])
def test_broken_off_and_run_again(kind: str, data: Path, toy_dir: Path, tmp_path: Path) -> None:
    """The same record as undisturbed, and nothing is made twice."""
    settings = EvaluationSettings(f"arcade-{kind}", data, str(toy_dir))

    def run(network: Means, folder: str) -> dict[str, object]:
        cache = FeatureCache(tmp_path / folder / "features.sqlite")
        record = tmp_path / folder / "record.json"
        evaluate(settings, [network], cache=cache, record=record, say=lambda text: None)
        (row,) = read_records(record)
        return row.model_dump(exclude={"seconds"})

    whole, network = Means(), Means(breaks_at=11)
    expected = run(whole, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(network, "killed")
    network = Means()
    assert run(network, "killed") == expected
    assert network.seen == whole.seen - 11  # four batches had been filed
    network = Means()
    assert run(network, "killed") == expected and network.seen == 0
    assert expected["num_clips"] == 8 and expected["protocol"] == f"arcade-{kind}"
    assert expected["interval"] is not None and expected["data"] and expected["model"]
    extra = expected["extra"]
    assert isinstance(extra, dict) and extra["mean_tokens"] > 0
    assert ("psnr_pooled" in extra) == (kind == "rfvd")
    assert ("moving_psnr" in extra) == (kind == "rfvd")
    assert ("psnr_predicted" in extra) == (kind == "fp")


def test_refined_reconstructions(
    data: Path, toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better, told in the record, and not another's notes."""
    words = ["--data", str(data), "--count", "4", "--model", str(toy_dir)]
    words += ["--cache", str(tmp_path / "features.sqlite"), "--json"]
    rows = []
    for steps in ("0", "6"):
        record = ["--refine", steps, "--record", str(tmp_path / f"{steps}.json")]
        assert main(["evaluate", "arcade-rfvd", *words, *record]) == 0
        rows.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert rows[1]["psnr_pooled"] > rows[0]["psnr_pooled"]
    assert rows[1]["mean_tokens"] == rows[0]["mean_tokens"] and rows[1]["model"] != rows[0]["model"]
    (plain,), (refined,) = (read_records(tmp_path / f"{steps}.json") for steps in "06")
    assert refined.extra["refine_steps"] == 6 and "refine_steps" not in plain.extra
    assert refined.name == f"{plain.name} refined 6"
    for protocol in ("arcade-gfvd", "arcade-fp"):
        assert main(["evaluate", protocol, *words, "--refine", "6"]) == 2
        assert "--refine is for reconstructions" in capsys.readouterr().err
    assert main(["evaluate", "arcade-rfvd", *words, "--refine", "-1"]) == 2
    assert "--refine" in capsys.readouterr().err


def test_guidance_is_the_models_own(
    data: Path, toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of samples and records, unless another scale is asked for; 2 of a model that tells none."""
    words = ["evaluate", "arcade-gfvd", "--data", str(data), "--count", "4", "--no-cache"]
    shutil.copytree(toy_dir, tmp_path / "toy")
    config = tmp_path / "toy" / "generator" / "config.json"
    for own, asked, told in ((None, [], 2.0), (1.5, [], 1.5), (1.5, ["--guidance", "3"], 3.0)):
        known = json.loads(config.read_text()) | ({} if own is None else {"guidance": own})
        config.write_text(json.dumps(known))
        record = tmp_path / f"{own} {told}.json"
        more = ["--model", str(tmp_path / "toy"), "--record", str(record), *asked]
        assert main([*words, *more]) == 0, capsys.readouterr().err
        (row,) = read_records(record)
        assert row.extra["guidance"] == told
        out = tmp_path / f"samples {own} {told}"
        sample = ["sample", "-n", "1", "--model", str(tmp_path / "toy"), "-o", str(out), "--json"]
        assert main([*sample, *asked]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["guidance"] == told


class Distance:
    """Stands for LPIPS: the mean absolute difference."""

    name, checksum = "lpips", "of its weights"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean((1, 2, 3, 4))


def test_lpips_is_in_the_record_or_told_absent(
    data: Path, toy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clips were noted before its weights came."""
    settings = EvaluationSettings("arcade-rfvd", data, model=str(toy_dir), count=4)
    said: list[str] = []
    values = []
    for distance in (None, Distance()):
        monkeypatch.setattr(module, "lpips_at_hand", lambda distance=distance: distance)
        with FeatureCache(tmp_path / "features.sqlite") as cache:
            record = tmp_path / f"{distance is None}.json"
            evaluate(settings, [Means()], cache=cache, record=record, say=said.append)
        (row,) = read_records(record)
        values.append(row.extra["lpips"])
        for key in ("psnr", "moving_psnr", "ssim", "mean_tokens", "bits_per_pixel"):
            assert isinstance(row.extra[key], float), key
    assert values[0] == "absent" and float(values[1]) > 0
    assert any("no LPIPS: its weights are not here" in line for line in said)


def test_windows_can_be_named(data: Path, toy_dir: Path, footage: Path, tmp_path: Path) -> None:
    """Of each video the first (AdapTok), one at random (LARP), or all; records tell them apart."""
    config = DataConfig.model_validate(
        {
            "size": 32,
            "num_frames": 8,
            "cache_dir": tmp_path / "cache",
            "sources": [{"kind": "ucf101", "root": footage}],
        }
    )
    protocol = PROTOCOLS["arcade-rfvd"].model_copy(update={"data": DataSet(name="squares")})
    starts = {
        window: [(w.video, w.start) for w in draw(protocol, config, None, window).windows]
        for window in ("first", "random", "all")
    }
    videos = sorted({video for video, _ in starts["all"]})
    assert starts["first"] == [(video, 0) for video in videos]
    rng = random.Random(42)
    lengths = {video: max(start for v, start in starts["all"] if v == video) for video in videos}
    assert [video for video, _ in starts["random"]] == videos
    assert [start for _, start in starts["random"]] == [
        rng.randint(0, lengths[video]) for video in videos
    ]
    words = ["evaluate", "arcade-gfvd", "--data", str(data), "--model", str(toy_dir)]
    assert main([*words, "--window", "random"]) == 2
    marks = set()
    for window in ("first", "random"):
        record = tmp_path / f"{window}.json"
        words[1] = "arcade-rfvd"
        assert main([*words, "--window", window, "--no-cache", "--record", str(record)]) == 0
        (row,) = read_records(record)
        marks.add(json.dumps(row.settings, sort_keys=True))
    assert len(marks) == 2


def test_the_command(
    data: Path, toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "arcade-rfvd", "--data", str(data), "--model", str(toy_dir)]
    words += ["--cache", str(tmp_path / "f.sqlite"), "--json"]
    assert main([*words, "--count", "5", "--assignment", "uniform:2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["num_fake"] == 5 and result["mean_tokens"] == 8 and "fvd[nano]" in result
    assert result["psnr_pooled"] <= result["psnr"] + 1e-6
    for more, said in (
        (["--count", "99"], "squares has 8 clips, not 99: give --count 8"),
        (["--no-cache"], "contradict each other"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["evaluate", "arcade-xfvd", *words[2:]]) == 2
    assert "no protocol 'arcade-xfvd'; there are ucf101-rfvd" in capsys.readouterr().err


def test_data_is_known_by_what_it_is(data: Path, toy_dir: Path, footage: Path) -> None:
    """A folder called UCF-101 makes no UCF-101, and another name does not undo it."""
    ucf, names = PROTOCOLS["ucf101-rfvd"].data, [f"class {n}" for n in range(101)]
    assert ucf.fits(names, 9537) and not ucf.fits(names[:6], 9537) and not ucf.fits(names, 75)
    assert PROTOCOLS["k600-fp"].data.fits(names * 6, 1) is False
    arcade = PROTOCOLS["arcade-rfvd"].data
    assert arcade.fits(["Frogger", "Boxing"], 8) and not arcade.fits(["Frogger", "Archery"], 8)
    (data.parent / "UCF-101").symlink_to(footage)
    data.write_text(data.read_text().replace(str(footage), str(data.parent / "UCF-101")))
    config = load_config(DataFile, data).data
    with pytest.raises(ValueError, match=r"is for UCF-101 \(101 classes, 9537 videos.*UCF-101 \("):
        draw(PROTOCOLS["ucf101-rfvd"], config, 2)


def test_the_protocols_of_the_papers() -> None:
    """Counts, lists and sizes as `spec/fvd.md` has them."""
    found = {
        name: (p.split, p.window, p.count, p.shrink)
        for name, p in PROTOCOLS.items()
        if not name.startswith("arcade")
    }
    assert found == {
        "ucf101-rfvd": ("train", "first", 9537, None),
        "ucf101-gfvd": ("train", "all", 10_000, None),
        "k600-fp": ("test", "all", 50_000, 64),
    }


def test_windows_of_larp(tmp_path: Path, footage: Path) -> None:
    """Videos by path, not as listed; floats of a longer side that is cut off."""
    rng = np.random.default_rng(0)
    listed = ("Late/v_Late_g01_c01.mp4", "Early/v_Early_g02_c01.mp4", "Early/v_Early_g01_c01.mp4")
    for name in listed:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise = rng.integers(0, 255, (36, 6, 8, 3), np.uint8).repeat(10, 1).repeat(10, 2)
        write_video(tmp_path / name, noise, 10)
    (tmp_path / "classInd.txt").write_text("1 Early\n2 Late\n")
    (tmp_path / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in listed))
    config = DataConfig.model_validate(
        {"size": 32, "cache_dir": tmp_path / "cache", "sources": [
            {"kind": "ucf101", "root": tmp_path}]}
    )  # fmt: skip
    protocol = PROTOCOLS["ucf101-gfvd"].model_copy(update={"data": DataSet(name="any")})
    drawn = draw(protocol, config, 4)
    assert not drawn.is_copied
    (tmp_path / "prepared.json").touch()
    assert drawn.is_copied
    every = [f"{name}#{start}" for name in sorted(listed) for start in (0, 16)]
    expected = [every[i] for i in random.Random(42).sample(range(6), 4)]
    assert [drawn.sampler.name(window) for window in drawn.windows] == expected
    name, start = expected[0].split("#")
    frames = read_frames(tmp_path / name, int(start), 16).permute(0, 3, 1, 2).float() / 255
    resized = interpolate(frames, (32, 42), mode="bilinear", antialias=True)
    clip = (resized[..., 5:37] * 2 - 1).transpose(0, 1)
    assert torch.equal(drawn.load(0)[0], clip)
    assert drawn.cut.resize == "float" and drawn.cut.model_dump()["resize"] == "float"
    item = next(drawn.walk(lambda key: True, None))
    assert " float" in item.key and item.clip is not None and torch.equal(item.clip, clip)
    ours = draw(protocol.model_copy(update={"resize": "bytes", "order": "list"}), config, 4)
    assert next(ours.walk(lambda key: True, None)).key != item.key
    assert [drawn.sampler.name(w) for w in ours.windows] != expected


def test_order_of_kinetics(tmp_path: Path, footage: Path) -> None:
    """The published list has one flat folder; files may lie in folders of their classes."""
    films = sorted(footage.glob("*/*.mp4"))[:4]
    listed = ("zebra/a_000001_000011.mp4", "ape/c_000001_000011.mp4", "bear/b_000001_000011.mp4")
    rows = []
    for number, name in enumerate(listed):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(films[number].read_bytes())
        rows.append(f"{number},{name},{name.split('/')[0]},{number}")
    (tmp_path / "val.csv").write_text("\n".join(["id,path,action,label", *rows]) + "\n")
    config = DataConfig.model_validate(
        {"size": 32, "cache_dir": tmp_path / "cache", "sources": [
            {"kind": "kinetics", "root": tmp_path, "test_csv": tmp_path / "val.csv"}]}
    )  # fmt: skip
    protocol = PROTOCOLS["k600-fp"].model_copy(update={"data": DataSet(name="any"), "count": None})
    write_video(tmp_path / "short.mp4", np.zeros((9, 32, 32, 3), np.uint8), 10)
    with (tmp_path / "val.csv").open("a") as file:
        file.write("3,short.mp4,ape,1\n")
    drawn = draw(protocol, config, None)
    names = [drawn.sampler.name(window).split("/")[1][0] for window in drawn.windows]
    assert names == sorted(names) and set(names) == {"a", "b", "c"}
    assert drawn.cut.order == "name" and drawn.cut.short == "skip"
    kept = draw(protocol.model_copy(update={"short": "repeat"}), config, None)
    assert len(kept.windows) == len(drawn.windows) + 1


@pytest.mark.parametrize("kind", ["rfvd", "fp"])
def test_a_standing_frame_beside_the_model(
    kind: str, data: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first frame for reconstructions, the last that is given for predictions."""
    words = ["evaluate", f"arcade-{kind}", "--data", str(data), "--model", str(toy_dir)]
    words += ["--no-cache", "--json"]
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*words, "--still"]) == 0
    both = json.loads(capsys.readouterr().out.splitlines()[-1])
    still = both.pop("still")
    assert both == alone

    real = face.draw(face.PROTOCOLS[f"arcade-{kind}"], load_config(DataFile, data).data, None)
    clips = torch.cat([real.load(chunk.start) for chunk in real.chunks(RankInfo(0, 1))])
    given = 1 if kind == "rfvd" else frame_condition(load(str(toy_dir))).num_frames
    out = clips.clone()
    out[:, :, given:] = clips[:, :, given - 1 : given]
    start = 0 if kind == "rfvd" else given
    expected = psnr(out[:, :, start:], clips[:, :, start:]).mean()
    assert still["psnr"] == pytest.approx(float(expected))
    assert 0 < still["fvd[nano]"] < 1000 and still["moving_psnr"] < still["psnr"]


def test_a_sample_has_no_frame_to_stand(
    data: Path, toy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "arcade-gfvd", "--data", str(data), "--model", str(toy_dir), "--still"]
    assert main(words) == 2
    assert "--still is for reconstructions and predictions" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["kept", "decoded"])
def test_given_frames_are_kept_or_decoded(
    given: Literal["kept", "decoded"], data: Path, toy_dir: Path, tmp_path: Path
) -> None:
    """As the protocol says, and so does the record: the two never share a table."""
    protocol = face.PROTOCOLS["arcade-fp"].model_copy(update={"given": given})
    settings = EvaluationSettings("arcade-fp", data, str(toy_dir))
    models = load(str(toy_dir))
    real = draw(protocol, load_config(DataFile, data).data, None)
    clips = real.load(0)
    count = frame_condition(models).num_frames
    made, *_ = module.fake_side(protocol, models, real, settings).make(range(len(clips)))
    assert torch.equal(made[:, :, :count], clips[:, :, :count]) == (given == "kept")
    assert not torch.equal(made[:, :, count:], clips[:, :, count:])
    face.PROTOCOLS["arcade-fp"] = protocol
    record = tmp_path / "record.json"
    evaluate(settings, [Means()], record=record, say=lambda text: None)
    (row,) = read_records(record)
    assert row.settings["given"] == given
