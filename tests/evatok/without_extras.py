"""Encode, decode, sample and predict in a process where no package of an extra can be imported.

    python tests/evatok/without_extras.py MODEL_DIR

Prints one line for each module that an extra should have, the message that its import gives.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder

import torch

import evatok
from evatok.core.errors import MissingPackageError
from evatok.core.extras import EXTRAS

NEED_AN_EXTRA = (
    "evatok.report.plots",
    "evaluation.metrics.feature_metric",
    "evatok.workflows.search",
    "tokenizer.search.table",
    "training.runs.run_log",
)


class Absent(MetaPathFinder):
    """Finds no package of an extra."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        """Refuse a module of an extra; leave others to the next finder."""
        package = fullname.partition(".")[0]
        if any(package in packages for packages in EXTRAS.values()):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(directory: str) -> None:
    """Use a toy model, then import what needs an extra."""
    sys.meta_path.insert(0, Absent())
    model = evatok.load(directory, device="cpu")
    frames = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    again = model.decode(model.encode(evatok.Video(frames, 15)))
    assert again.frames.shape == frames.shape
    assert len(model.sample(["Left"])) == 1 and len(model.predict(again[:5])) == 16
    for name in NEED_AN_EXTRA:
        try:
            importlib.import_module(name)
        except MissingPackageError as error:
            print(error)


if __name__ == "__main__":
    main(sys.argv[1])
