"""Protocols run on toy models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch import Tensor

from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.records import read_records
from evatok.cli.app import main
from evatok.core.config import load_config
from evatok.measure import evaluate as face
from evatok.measure import protocol_sides as module
from evatok.measure.evaluate import DataFile, evaluate
from evatok.measure.protocol_sides import PROTOCOLS, DataSet, Settings, draw


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
    settings = Settings(f"arcade-{kind}", data, str(toy_dir))

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
