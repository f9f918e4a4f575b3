"""The golden feature pairs and their values."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_golden(shared: Path) -> tuple[ModuleType, dict[str, dict[str, Any]]]:
    """The script that makes the features, and the true values by case."""
    folder = shared / "golden"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("scipy", "scipy.linalg", "mpmath"):  # only its other functions use them
            patch.setitem(sys.modules, name, ModuleType(name))
        spec = importlib.util.spec_from_file_location("golden_distances", folder / "distances.py")
        assert spec is not None and spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    return script, json.loads((folder / "distances.json").read_text())["cases"]
