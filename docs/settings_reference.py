"""Write docs/settings.md, table of every settings class: `python docs/settings_reference.py`."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
PACKAGES = ("video", "training", "evaluation", "tokenizer", "generator", "evatok")
HEAD = """# Settings reference

Written by `python docs/settings_reference.py` from the typed classes; change those, not this
page. A settings file is read by one class; a key whose type is a class of this page holds that
class's keys. Unknown keys are refused.
"""


def comment_of(lines: list[str], first: int, last: int) -> str:
    """Return the comment above a field and behind it; lines count from 1."""
    above: list[str] = []
    for line in reversed(lines[: first - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    behind = re.search(r"\s#\s(.*)$", lines[last - 1])
    return " ".join([*above, *([behind[1]] if behind else [])])


def cell(text: str) -> str:
    """Return text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def tables() -> Iterator[str]:
    """Yield a section for each settings class, in the order of the files."""
    from evatok.core.config import Config
    from video.dataset import VideoConfig

    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text("utf-8")
            if not re.search(r"^class \w+\(", source, re.MULTILINE) or "Config" not in source:
                continue
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(source).body:
                if not isinstance(node, ast.ClassDef):
                    continue
                kind = getattr(importlib.import_module(name), node.name)
                if not (isinstance(kind, type) and issubclass(kind, Config | VideoConfig)):
                    continue
                doc = textwrap.dedent(ast.get_docstring(node) or "")
                rows = list(fields(node, source.splitlines(), attributes(doc)))
                more = [base for base in kind.__bases__ if getattr(base, "model_fields", None)]
                if rows or more:
                    text = cell(doc.split("\n\n")[0])
                    for base in more:
                        text += f" Has the keys of [`{base.__name__}`](#{anchor(base)}) too."
                    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
                    table = f"\n\n{head}" + "\n".join(rows) if rows else ""
                    yield f"## `{name}.{node.name}`\n\n{text}{table}"


def anchor(kind: type) -> str:
    """Return the anchor of a class's section on the page."""
    return f"{kind.__module__}.{kind.__name__}".replace(".", "").lower()


def attributes(doc: str) -> dict[str, str]:
    """Return what a docstring says of each of its `Attributes`."""
    _, _, section = doc.partition("Attributes:\n")
    section = section.split("\n\n")[0]
    named = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in named}


def fields(node: ast.ClassDef, lines: list[str], told: Mapping[str, str]) -> Iterator[str]:
    """Yield a row for each field that a class declares; `told` has what its docstring says."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        default = "required" if item.value is None else f"`{cell(ast.unparse(item.value))}`"
        if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) == "Field":
            words = {word.arg: ast.unparse(word.value) for word in item.value.keywords}
            value = words.pop("default", words.pop("default_factory", None))
            limits = ", ".join(f"{key} {limit}" for key, limit in words.items())
            default = "required" if value is None else f"`{cell(value)}`"
            default += f" ({cell(limits)})" if limits else ""
        meaning = comment_of(lines, item.lineno, item.end_lineno or item.lineno)
        meaning = " ".join(filter(None, [told.get(item.target.id, ""), meaning]))
        kind = cell(ast.unparse(item.annotation))
        yield f"| `{item.target.id}` | `{kind}` | {default} | {cell(meaning)} |"


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(f"\n{table}\n" for table in tables())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
