"""What decides a reconstruction is in the key that it is cached by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evatok.hub import load, save_model
from evatok.measure.protocol_sides import _assignment_origin, _origin
from evatok.model_folders import PREFERENCE
from tokenizer.router import Router, RouterConfig
from tokenizer.search.candidates import model_hash

ROUTER = {
    "router": [], "router:1.3": [], "uniform:1": [], "threshold:20": ["proxy"],
    "best": ["proxy", "w_q", "standard", "quality"], "best:1.3": ["proxy", "standard", "quality"],
}  # fmt: skip
CHANGES: dict[str, Any] = {
    "w_q": 0.7,
    "quality": "moving_psnr",
    "standard": {"mean_quality": 9, "std_quality": 2, "mean_length": 4, "std_length": 2},
}


def key(folder: Path, spec: str) -> str:
    return _origin("rfvd", *_assignment_origin(load(folder), spec))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("spec", ROUTER)
def test_keys_of_reconstructions(toy_dir: Path, tmp_path: Path, spec: str) -> None:
    """Each thing that the assignment depends on changes the key, and nothing else does."""
    copy = tmp_path / "copy"
    shutil.copytree(toy_dir, copy)
    before = key(copy, spec)
    assert key(toy_dir, spec) == before
    for name, value in CHANGES.items():
        change_config(copy / "router", **{name: value})
        assert (key(copy, spec) != before) == (name in ROUTER[spec]), name
        shutil.copy(toy_dir / "router" / "config.json", copy / "router")
    shutil.copy(copy / "final" / "model.safetensors", copy / "proxy")
    assert (key(copy, spec) != before) == ("proxy" in ROUTER[spec])


def test_settings_of_a_generator_are_in_the_key(toy_dir: Path, tmp_path: Path) -> None:
    """How given frames are continued is no weight."""
    keys = set()
    for number, repredicts in enumerate((True, False)):
        copy = tmp_path / str(number)
        shutil.copytree(toy_dir, copy)
        frames = json.loads((copy / "generator" / "config.json").read_text())["frames"]
        change_config(copy / "generator", frames=frames | {"repredict_partial": repredicts})
        models = load(copy)
        keys.add(_origin("fp", (models.final, models.generator), {}))
    assert len(keys) == 2


@pytest.mark.parametrize("spec", ["router", "router:1.3", "uniform:1"])
def test_keys_of_a_router_and_of_none_are_those_of_before(toy_dir: Path, spec: str) -> None:
    models = load(toy_dir)
    routers = (models.router, models.router) if spec.startswith("router") else ()
    assert key(toy_dir, spec) == _origin("rfvd", (models.final, *routers), {"assignment": spec})


def test_a_conditioned_router_alone_is_told_by_its_own_w_q(toy_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy_dir, copy, ignore=shutil.ignore_patterns("router"))
    config = load(toy_dir).router.config.model_copy(update={"preference": True})
    torch.manual_seed(0)
    save_model(Router(RouterConfig.model_validate(config.model_dump())), copy / PREFERENCE)
    before = {spec: key(copy, spec) for spec in ("router", "router:1.3")}
    weights = model_hash(load(copy).router)
    change_config(copy / PREFERENCE, w_q=0.7)
    assert model_hash(load(copy).router) == weights
    assert key(copy, "router") != before["router"]
    assert key(copy, "router:1.3") == before["router:1.3"]
