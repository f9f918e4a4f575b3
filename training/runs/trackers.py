"""Experiment trackers beside log.jsonl: Weights & Biases, MLflow and others, through accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evatok.core.config import TrackerName
from evatok.core.errors import EvatokError
from evatok.core.extras import extra


class Trackers:
    """The trackers of one run; only the first process holds any."""

    def __init__(
        self, names: Sequence[TrackerName], run_dir: Path, settings: Mapping[str, Any]
    ) -> None:
        """Start a run under the folder's name in each tracker.

        Args:
            names: each needs its own package.
            run_dir: folder of the run; trackers that write files get its sub-folder `trackers`.
            settings: shown beside the curves.

        Raises:
            EvatokError: accelerate or a tracker's package is not installed.
        """
        self.trackers: list[Any] = []
        if not names:
            return
        with extra("train"):
            from accelerate import PartialState
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        PartialState()  # its trackers ask it which process this is
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            folder = (
                {"logging_dir": run_dir / "trackers"} if kind.requires_logging_directory else {}
            )
            try:
                tracker = kind(run_dir.name, **folder)
                if hasattr(tracker, "start"):  # newer releases begin the run here
                    tracker.start()
            except ImportError:
                raise EvatokError(
                    f"train.trackers: {name} is not installed: pip install {name}"
                ) from None
            tracker.store_init_configuration(dict(_flat(settings)))
            self.trackers.append(tracker)

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Add a point to each curve `kind/name`."""
        values = {f"{kind}/{name}": value for name, value in scalars.items()}
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def close(self) -> None:
        """Finish the runs."""
        for tracker in self.trackers:
            tracker.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Settings by dotted key; what trackers do not know is text."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            is_plain = isinstance(value, (bool, int, float, str))
            rows.append((f"{prefix}{key}", value if is_plain else str(value)))
    return rows
