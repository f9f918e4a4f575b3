"""Finding and loading trained parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

import evatok
from evaluation.encoders.nano import NanoFeatures
from evaluation.scoring.records import Record
from evatok.core.errors import EvatokError
from evatok.hub import FILES, Models, feature_networks, load
from evatok.model_folders import PARTS
from generator.gpt import GPT
from generator.inference.optimize import prepare_for_inference
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router


def test_parts_load_in_float32_and_do_not_train(toy: Models) -> None:
    assert toy.parts == list(PARTS)
    for part in PARTS:
        model = getattr(toy, part)
        assert not model.training
        for tensor in model.parameters():
            assert tensor.dtype == torch.float32 and not tensor.requires_grad


def test_only_two_files_a_part(toy_dir: Path) -> None:
    for part in PARTS:
        assert sorted(path.name for path in (toy_dir / part).iterdir()) == sorted(FILES)


def test_half_precision_is_all_that_is_lost(toy: Models, toy_dir: Path) -> None:
    again = load(str(toy_dir)).final
    for name, tensor in toy.final.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, tensor.half().float()) or not tensor.is_floating_point()


def test_missing_models_are_named(tmp_path: Path, toy_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no models 'nothing-here'"):
        load("nothing-here")
    shutil.copytree(toy_dir / "final", tmp_path / "final")
    models = load(tmp_path)
    assert models.parts == ["final"]
    with pytest.raises(FileNotFoundError, match=r"no router in .*config\.json is missing"):
        _ = models.router


class Hub:
    """A stand-in for the hub's client: repositories are folders."""

    root: Path

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        if repo_id.startswith("forbidden/"):
            raise OSError("403 Forbidden")
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id: str, folder_path: Path, **options: object) -> str:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"commit of {repo_id}"


def test_a_generator_of_another_tokenizer_is_refused(toy_dir: Path, tmp_path: Path) -> None:
    """Also where the weights fit: patches of other sides and as many pixels."""
    mixed = shutil.copytree(toy_dir, tmp_path / "mixed")
    config = json.loads((mixed / "final" / "config.json").read_text())
    frames, rows, columns = config["patch"]
    changed = config | {"patch": [2 * frames, rows, columns // 2]}
    (mixed / "final" / "config.json").write_text(json.dumps(changed))
    models = load(mixed)
    assert models.final.num_blocks == 2
    with pytest.raises(EvatokError, match=r"generator was not trained on the tokens of .*final"):
        _ = models.generator


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Hub.root = tmp_path / "hub"
    monkeypatch.setattr("evatok.hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: str(Hub.root / name)
    )
    monkeypatch.chdir(tmp_path)
    return Hub.root


RECORD = Record(
    name="toy",
    protocol="arcade-rfvd",
    value=12.345,
    interval=(11.0, 13.5),
    network="i3d",
    checksum="0123456789abcdef",
    num_clips=75,
    settings={"size": 128},
)


def test_push_to_hub_of_a_model_is_one_repository(toy_dir: Path, hub: Path) -> None:
    model = evatok.load(toy_dir, "cpu")
    assert model.push_to_hub("me/toy", [RECORD]) == "commit of me/toy"
    again = evatok.load("me/toy", "cpu")
    assert again.parts == model.parts
    for part in PARTS:
        ours, theirs = (getattr(one, part).state_dict() for one in (model, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = ModelCard((hub / "me/toy/README.md").read_text())
    facts = {"license": "mit", "pipeline_tag": "video-to-video", "library_name": "evatok"}
    assert facts.items() <= card.data.to_dict().items()
    assert 'evatok.load("me/toy")' in card.text and "| generator |" in card.text
    row = '| fvd | 12.35 | 11 to 13.5 | arcade-rfvd | 75 | i3d 0123456789ab | {"size": 128} | toy |'
    assert row.replace("12.35", f"{12.345:.4g}") in card.text
    with pytest.raises(evatok.EvatokError, match="does not take forbidden/toy"):
        model.push_to_hub("forbidden/toy")
    with pytest.raises(evatok.EvatokError, match="give owner/name"):
        model.push_to_hub("toy")


def test_push_to_hub_of_a_part_loads_as_that_part(toy_dir: Path, hub: Path) -> None:
    toy = Models(toy_dir)
    tags = {"final": "video-to-video", "router": "video-classification",
            "generator": "text-to-video", "features": "feature-extraction"}  # fmt: skip
    for part, tag in tags.items():
        kind = type(getattr(toy, part))
        model = kind.from_pretrained(toy.folder(part))  # not laid out for sampling
        model.push_to_hub(f"me/{part}", model_card_kwargs={"numbers": "FVD 3"})
        assert load(f"me/{part}").parts == [part]
        again = kind.from_pretrained(load(f"me/{part}").folder(part)).state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
        card = ModelCard((hub / "me" / part / "README.md").read_text())
        assert {"license": "mit", "pipeline_tag": tag}.items() <= card.data.to_dict().items()
        assert "FVD 3" in card.text and "parameters" in card.text


def test_save_pretrained_refuses_weights_laid_out_for_sampling(
    toy_dir: Path, tmp_path: Path
) -> None:
    gpt = prepare_for_inference(GPT.from_pretrained(toy_dir / "generator"), compiled=False)
    with pytest.raises(evatok.EvatokError, match=r"laid out for sampling.*from_pretrained"):
        gpt.save_pretrained(tmp_path / "m")


def test_config_names_its_class(toy: Models, tmp_path: Path) -> None:
    toy.router.save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config.pop("architectures") == ["Router"]
    with pytest.raises(ValueError, match=r"config.json is of a Router, not of a VideoTokenizer"):
        VideoTokenizer.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))  # as older exports have it
    again = Router.from_pretrained(tmp_path / "a")
    assert all(map(torch.equal, again.state_dict().values(), toy.router.state_dict().values()))


def test_save_pretrained_of_a_model_is_a_model(toy_dir: Path, tmp_path: Path) -> None:
    model = evatok.load(toy_dir, "cpu")
    model.save_pretrained(tmp_path / "copy")
    again = evatok.load(tmp_path / "copy", "cpu")
    assert torch.equal(model.final.quantizer.codebook, again.final.quantizer.codebook)
    assert "No measurement came" in (tmp_path / "copy" / "README.md").read_text()
    with pytest.raises(evatok.EvatokError):
        model.save_pretrained(toy_dir)


def test_shipped_games_are_whole() -> None:
    """All parts, their own network of distances, and a generator that the tokenizer fits."""
    models = load("games")
    assert models.parts == ["features", "proxy", "final", "generator", "preference"]
    assert models.router is models.preference and models.router.config.preference
    assert models.generator.vocabulary.codebook_size == models.final.config.codebook_size
    assert models.generator.text is not None and models.generator.frames is not None
    assert NanoFeatures(models.features).name == "games" and len(models.features.class_names) == 40


def test_nano_is_the_shipped_network_where_the_models_own_has_another_name() -> None:
    """FVD[nano] is never told of another network."""
    asked = feature_networks("nano,games", "games")
    assert [network.name for network in asked] == ["nano", "games"]
    assert asked[0].checksum == feature_networks("nano", "nano")[0].checksum
    assert asked[1].checksum == NanoFeatures(load("games").features).checksum


def test_parts_that_are_first_used_without_gradients_have_them_later(toy_dir: Path) -> None:
    """Whoever loads: the weights are no inference tensors."""
    with torch.inference_mode():
        models = load(toy_dir)
        parameters = list(models.final.parameters())
    assert not any(parameter.is_inference() for parameter in parameters)
