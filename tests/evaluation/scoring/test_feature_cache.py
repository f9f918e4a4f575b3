"""The cache of features while several use it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evaluation.scoring.feature_cache import FeatureCache


def test_a_new_cache_is_opened_by_many_at_once(tmp_path: Path) -> None:
    """SQLite said "database is locked" at once, in one of twenty such moments."""
    together = threading.Barrier(4, timeout=60)

    def use(_: int) -> None:
        for number in range(30):
            together.wait()
            with FeatureCache(tmp_path / f"{number}.sqlite"):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert not list(tmp_path.glob("*.lock"))
