"""The toy family of the simulated device's tests, for a real GPU."""

from __future__ import annotations

from tests.devices.conftest import (
    clip,
    data,
    footage,
    routers,
    searched,
    text_dir,
    tokenizer_settings,
    toy_dir,
)

__all__ = [
    "clip", "data", "footage", "routers", "searched", "text_dir", "tokenizer_settings", "toy_dir",
]  # fmt: skip
