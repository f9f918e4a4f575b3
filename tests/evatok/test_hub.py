"""Finding and loading trained parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from evatok.hub import FILES, Models, load
from evatok.model_folders import PARTS


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
