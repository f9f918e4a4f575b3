"""Records of scores, for tests of tables and pages."""

from __future__ import annotations

from evaluation.scoring.leaderboard import Record


def record(name: str, value: float, **changes: object) -> Record:
    settings = {"name": name, "protocol": "arcade-rfvd", "value": value, "network": "nano"}
    return Record.model_validate(settings | {"num_clips": 100} | changes)
