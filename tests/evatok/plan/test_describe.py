"""What `evatok info` says of trained parts, from config.json and headers alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evatok.core.loading.records import RecordError
from evatok.hub import Models, load
from evatok.model_folders import locate
from evatok.plan.info import describe


def assert_as_built(found: dict[str, object], models: Models) -> None:
    for row in found["parts"]:  # type: ignore[attr-defined]
        model = getattr(models, row["part"])
        assert row["parameters"] == sum(value.numel() for value in model.parameters())
        facts = found[row["part"]]
        for name, child in model.named_children():
            assert facts.get(name, 0) == sum(value.numel() for value in child.parameters())  # type: ignore[attr-defined]
    generator, facts = models.generator, found["generator"]
    assert isinstance(facts, dict)
    assert facts["vocabulary"] == generator.vocabulary.size
    assert facts["max_tokens"] == generator.max_tokens
    assert facts["class_names"] == list(generator.vocabulary.class_names)
    assert facts["frame_condition"]["prefix"] == list(generator.frames.prefix)  # type: ignore[union-attr]


def test_describe_says_what_the_built_models_have(toy_dir: Path, text_dir: Path) -> None:
    for directory in (locate("nano"), toy_dir, text_dir):
        assert_as_built(describe(str(directory)), load(directory))


def test_describe_loads_no_torch(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evatok", "info", "nano", "--json"],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["final"]["assignments"] == 625
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "evatok.plan.describe" in loaded
    assert not loaded & {"torch", "einops", "av", "evatok.hub", "huggingface_hub"}


def test_describe_names_a_damaged_file(toy_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_dir / "final", tmp_path / "final")
    config = tmp_path / "final" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "patch": 4}))
    with pytest.raises(RecordError, match=r"config\.json is incomplete .*export the model again"):
        describe(str(tmp_path))
    config.write_text(json.dumps(data))
    (tmp_path / "final" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RecordError, match="no whole safetensors file"):
        describe(str(tmp_path))
