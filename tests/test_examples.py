"""The notebook's cells run from top to bottom; the Space's files and the Dockerfile are true."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

import evatok


def test_notebook_runs_and_stores_no_output(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads((root / "examples" / "quickstart.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert isinstance(names["again"], evatok.Video) and isinstance(names["rest"], evatok.Video)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"again.mp4", "clip.evt", "sample-0.mp4", "sample-1.mp4"}


def test_space_is_configured_for_its_files(root: Path) -> None:
    space = root / "examples" / "space"
    _, front, _ = (space / "README.md").read_text("utf-8").split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio" and (space / settings["app_file"]).is_file()
    version = re.search(r'"gradio>=(\d+)', (root / "pyproject.toml").read_text("utf-8"))
    assert version is not None and settings["sdk_version"].split(".")[0] == version[1]
    assert "evatok[app]" in (space / "requirements.txt").read_text("utf-8")
    ast.parse((space / "app.py").read_text("utf-8"))


def test_dockerfile_runs_the_commands_of_the_readme(root: Path) -> None:
    readme, docker = ((root / name).read_text("utf-8") for name in ("README.md", "Dockerfile"))
    first = re.search(r"```bash\n(.*?)```", readme, re.DOTALL)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first[1].splitlines()]
    assert len(commands) == 2 and all(command in docker for command in commands)


def test_version_is_told_once(root: Path) -> None:
    """Of the package, the citation and the changelog."""
    version = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version[1] and citation["license"] == "MIT"
    assert f"\n## {version[1]}\n" in (root / "CHANGELOG.md").read_text("utf-8")
