"""The folder of a run: one process at a time, and the settings that the run was begun with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evatok.core.config import Config, ConfigError
from evatok.core.errors import EvatokError
from evatok.core.loading.yaml_text import parse_yaml

SETTINGS = "config.yaml"
REMEDY = "put back the settings of this run, or train in another folder"

# What may differ when a run is taken up again: it changes no step that was taken.
MAY_CHANGE = frozenset(
    {
        "steps",
        "device",
        "num_workers",
        "log_every",
        "validate_every",
        "save_every",
        "keep_checkpoints",
        "trackers",
    }
    | {"checkpoint_activations", "sharding"}
)
# Likewise of the data, by dotted keys: it changes no clip.
DATA_MAY_CHANGE = frozenset({"data.workers", "data.cache_dir", "data.max_damaged"})


class TrainingError(EvatokError):
    """A run that cannot go on."""


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Lock the run folder; the system releases the lock when the process exits.

    Raises:
        TrainingError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    with (run_dir / ".lock").open("a") as file:
        try:
            # lockf, not flock: data workers that outlive a killed process must not hold it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{run_dir}: another process trains in this folder") from None
        yield


def git_hash() -> str | None:
    """Commit of the source tree, None where it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def compare_settings(run_dir: Path, settings: Config, free: Collection[str]) -> dict[str, Any]:
    """Refuse to go on with settings other than those which the run was begun with.

    Keys that the code learnt after the run was begun count as their defaults.

    Args:
        run_dir: has a config.yaml.
        settings: what the run would go on with.
        free: dotted keys that may differ.

    Returns:
        The settings in the folder, by dotted keys.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    path = run_dir / SETTINGS
    if not path.is_file():
        raise ConfigError(f"{run_dir} has checkpoints but no {SETTINGS}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}: {REMEDY}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}: {REMEDY}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} should hold `key: value` lines: {REMEDY}")
    with suppress(ValueError):  # keys have gone since: what is written is compared
        data = type(settings).model_validate(data).model_dump(mode="json")
    old, new = _flat(data), _flat(settings.model_dump(mode="json"))
    absent = object()
    differ = [
        f"{key} (was {old.get(key)!r}, now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and key not in free
    ]
    if differ:
        raise ConfigError(
            f"{run_dir} was begun with other settings: {', '.join(differ)}; "
            f"set them back or train in another folder"
        )
    return old


def config_prefix(part: Config, whole: Config) -> str:
    """Dotted prefix of the keys of a config within another: "", or "train." and the like."""
    if part is whole:
        return ""
    for name in type(whole).model_fields:
        if getattr(whole, name) == part:
            return f"{name}."
    raise RuntimeError(f"{type(whole).__name__} has no field with the given {type(part).__name__}")


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as {"a.b.0": value}."""
    if isinstance(data, dict):
        items: Any = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
