"""YAML of settings: safe, bounded, and without its traps."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

from evatok.core.errors import EvatokError

# What a file of settings may be: aliases that name each other stand for billions of values.
LARGEST_FILE, MOST_VALUES, DEEPEST = 2**17, 20_000, 40  # bytes, values, levels


class ConfigError(EvatokError):
    """Settings that cannot be used; the message names every key at fault."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without two traps: `1e-4` is a number, a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counts = Counter(map(str, keys))
        twice = sorted({key for key, count in counts.items() if count > 1} - {"<<"})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"given twice: {', '.join(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: of a file, or of an override.
        source: where it is written, for the message.

    Raises:
        ConfigError: not YAML, or more than settings need: aliases are counted for what they stand
            for, before anything is built.
    """
    try:
        loader = _Loader(text)  # refuses control characters already
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
    except RecursionError:
        reason = f"nested deeper than {DEEPEST}"
    raise ConfigError(f"{source}: not YAML: {reason}")


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of values of a node, with those behind its aliases."""
    if depth > DEEPEST:
        raise EvatokError(f"nested deeper than {DEEPEST}")
    if id(node) in known:
        return known[id(node)]
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            raise EvatokError("a NUL character in a value")
    else:
        known[id(node)] = MOST_VALUES + 1  # what an alias to itself stands for
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                count += _count(part, known, depth + 1)
    if count > MOST_VALUES:
        raise EvatokError(f"more than {MOST_VALUES} values, those behind aliases counted")
    known[id(node)] = count
    return count
