"""The toy family of the simulated device's tests, for a real GPU."""

from __future__ import annotations

from tests.devices.conftest import data, footage, text_dir, tokenizer_settings, toy_dir
from tests.devices.test_commands import clip
from tests.devices.test_stages import routers, searched

__all__ = [
    "clip", "data", "footage", "routers", "searched", "text_dir", "tokenizer_settings", "toy_dir",
]  # fmt: skip
