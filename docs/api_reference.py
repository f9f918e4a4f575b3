"""Write docs/api.md from the docstrings of `import evatok`: `python docs/api_reference.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "api.md"
HEAD = """# Python API

Written by `python docs/api_reference.py` from the docstrings; change those, not this page. Shape
letters: B batch, F frames, T blocks, H W pixels, S pixels of a side, L packed tokens.
"""
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):$")
ITEM = re.compile(r"    (\*{0,2}[\w.]+): (.*)")


def prose(doc: str) -> str:
    """Return a docstring as Markdown: items of its sections become lists."""
    lines: list[str] = []
    section = ""
    for line in doc.splitlines():
        title, item = SECTION.match(line), ITEM.match(line)
        if title:
            section = title[1]
            lines += [f"**{section}**", ""]
        elif not section or not line.strip():
            lines.append(line)
        elif item and section not in ("Returns", "Yields"):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(
                f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip()
            )
    return "\n".join(lines)


def signature(name: str, value: Any) -> str:
    """Return a call as code, one argument a line where it is long."""
    shown = inspect.signature(value)
    kept = [one for one in shown.parameters.values() if one.name != "self"]
    shown = shown.replace(parameters=kept)
    text = f"{name}{shown}".replace("'", "")
    if len(text) <= 92:
        return text
    words = str(shown.replace(return_annotation=inspect.Signature.empty))[1:-1].replace("'", "")
    parts = re.split(r", (?=\*|\w+[:=])", words)  # not between the types in brackets
    end = shown.return_annotation
    told = "" if end is inspect.Signature.empty else f" -> {end}".replace("'", "")
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){told}"


def entry(title: str, name: str, value: Any) -> str:
    """Return the section of a function, method or class."""
    doc = inspect.getdoc(value) or ""
    is_error = isinstance(value, type) and issubclass(value, Exception)
    code = ""
    if not (is_error or isinstance(value, property)):
        code = f"```py\n{signature(name, value)}\n```\n\n"
    return f"\n{title}\n\n{code}{prose(doc)}\n"


def entries() -> Iterator[str]:
    """Yield a section for each public name, methods beneath their class."""
    import evatok

    for name in evatok.__all__:
        value = getattr(evatok, name)
        yield entry(f"## `evatok.{name}`", f"evatok.{name}", value)
        if not isinstance(value, type) or issubclass(value, Exception):
            continue
        for inner, part in vars(value).items():
            if inner.startswith("_") or not inspect.getdoc(part):
                continue
            if isinstance(part, (property, staticmethod, classmethod)) or inspect.isfunction(part):
                call = part if isinstance(part, property) else getattr(value, inner)
                short = name.lower() if name != "VideoTokens" else "tokens"
                yield entry(f"### `{name}.{inner}`", f"{short}.{inner}", call)


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(entries())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
