"""Output of `evatok info` for a model or a settings file."""

from __future__ import annotations

from typing import Any

from evatok.core.config import find_settings
from evatok.plan.describe import describe_model


def describe(model_or_config: str) -> dict[str, Any]:
    """Describe trained parts by name or folder, or what a settings file would train.

    Settings are built on the meta device, see `evatok.plan.untrained`; torch is loaded for them
    alone. The file of own videos stands for every network that its pipeline trains.

    Returns:
        JSON-able: `parts`, a row each, and for every part its parameters by module; for the
        settings of a tokenizer also `training_only`, what is no part of it.

    Raises:
        FileNotFoundError: neither models nor a file.
        ConfigError: not the settings of something that is trained.
        RecordError: a file of a part is damaged.
    """
    path = find_settings(model_or_config)
    if path.suffix in (".yaml", ".yml"):
        from evatok.plan.untrained import describe_settings

        return describe_settings(path)
    return describe_model(model_or_config)
