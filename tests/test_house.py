"""The architecture as tests: who imports whom, names, and that written commands exist."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from video.arcade.atari import GAMES
from video.arcade.recorder import class_name

PACKAGES = ("video", "training", "evaluation", "tokenizer", "generator", "evatok")
ROOT = Path(__file__).resolve().parent.parent
CLASSES = {class_name(game) for game in GAMES}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_ours(package: str) -> None:
    """A package named `tokenizer` exists on the index; ours must win."""
    found = importlib.import_module(package).__file__
    assert found is not None and Path(found).resolve() == ROOT / package / "__init__.py"
    assert (ROOT / package / "py.typed").is_file()  # type checkers of others read our types


@pytest.mark.parametrize("package", PACKAGES)
def test_init_is_a_docstring(package: str) -> None:
    for path in modules(package):
        if path.name == "__init__.py" and path.parent.name != "evatok":  # the API
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path} does more"


@pytest.mark.parametrize("package", PACKAGES)
def test_names(package: str) -> None:
    """No module is named like a package, nobody imports a package bare."""
    for path in modules(package):
        assert path.stem not in PACKAGES, path
    for path in [*modules(package), *modules("tests"), *modules("benchmarks")]:
        for node in imports(path):
            if isinstance(node, ast.Import):
                bare = {alias.name for alias in node.names} & ({*PACKAGES} - {"evatok"})
                assert not bare, f"{path}:{node.lineno} imports {bare} bare"


def test_tests_mirror_packages() -> None:
    for path in modules("tests"):
        assert path.name != "__init__.py", f"{path}: tests are no package"
        parts = path.relative_to(ROOT / "tests").parts
        assert len(parts) == 1 or parts[0] in (
            *PACKAGES,
            "benchmarks",
            "devices",
            "faults",
            "gpu",
        ), path


def test_layers() -> None:
    """import-linter's contract of pyproject.toml holds."""
    command = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    run = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_files_import_each_other_in_one_direction() -> None:
    """No cycle of imports between files; imports for type checkers alone do not count."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    edges = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert any(edges.values())
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError, which names the files


def test_only_gpu_and_slow_tests_are_skipped() -> None:
    """What `make setup` installs and fetches is there; without it a test fails and says so."""
    words = re.compile(r"importorskip|pytest\.skip|mark\.skip|mark\.xfail")
    wrong = []
    for path in modules("tests"):
        if path in (Path(__file__), ROOT / "tests" / "conftest.py"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            text = ast.unparse(node)
            if words.search(text) and "mark.gpu" not in text and "mark.slow" not in text:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


def test_nothing_points_outside_the_repository() -> None:
    """Pages and settings name only what a reader can make or get."""
    settings = [p for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".txt")]
    assert len(settings) > 30
    for path in [*PAGES, *settings]:
        assert "../shared" not in path.read_text("utf-8"), path


def test_pages_link_to_files() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_benchmark_is_listed() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    found = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) >= found


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests)/[\w./-]+)`", text)
    assert len(named) > 60
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", ["settings", "api"])
def test_generated_page_is_current(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {name}_reference as r; print(r.page(), end='')"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'docs'}", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    written = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    assert run.stdout == written, f"run `python docs/{name}_reference.py`"


def test_messages_of_troubleshooting_occur() -> None:
    code = "".join(path.read_text("utf-8") for name in PACKAGES for path in modules(name))
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 20
    assert not [message for message in messages if message not in code]


def code_lines() -> list[tuple[str, str]]:
    """(page, line) of every fenced shell block of README and docs."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            lines += [(page.name, line.strip()) for line in block.splitlines()]
    return lines


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) of every `evatok …` or `make …` in running text and tables."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        found += [(page.name, hit) for hit in re.findall(r"`((?:evatok|make) [^`]+)`", text)]
    return found


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, line in code_lines() + inline_commands():
        if line.startswith("make "):
            assert line.split()[1] in targets, f"{page}: {line}"


def test_written_commands_exist() -> None:
    """Every `evatok` line of the pages names a command, options and configs that exist."""
    from typer.main import get_command

    from evatok.cli.app import app

    group = get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    of_all = {option for param in group.params for option in param.opts} | {"--help"}
    seen = 0
    for page, line in code_lines() + inline_commands():
        if not line.startswith("evatok "):
            continue
        words = line.split("#")[0].split()
        assert words[1] in commands or words[1] in of_all, f"{page}: {line}"
        if words[1] in of_all:
            continue
        command = commands[words[1]]
        if hasattr(command, "commands") and len(words) > 2:
            assert words[2] in command.commands, f"{page}: {line}"
            command = command.commands[words[2]]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for word in words[2:]:
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                assert word in known | {"--help"}, f"{page}: {line}: no option {word}"
            if words[words.index(word) - 1] == "--class":
                assert word in CLASSES, f"{page}: {line}: no class {word}"
            if word.startswith("configs/"):
                assert (ROOT / word).exists(), f"{page}: {line}: {word} is not there"
        seen += 1
    assert seen >= 10


def test_python_examples_import() -> None:
    """Names that the pages import are where the pages say."""
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        there = hasattr(module, alias.name) or (
                            hasattr(module, "__path__")
                            and importlib.util.find_spec(f"{node.module}.{alias.name}")
                        )
                        assert there, f"{page.name}: {alias.name}"


def test_the_table_of_stages_is_the_pipelines() -> None:
    from evatok.workflows.pipeline import Pipeline

    steps = {step.name for step in Pipeline(ROOT / "configs" / "nano").steps()}
    table = (ROOT / "docs" / "training.md").read_text().split("## The pipeline")[1].split("\n\n")
    rows = next(part for part in table if part.startswith("| stage"))
    told = set(re.findall(r"configs/nano/([\w-]+)\.yaml", rows)) | {"arcade", "gate"}
    assert told == steps - {"export", "report"}
