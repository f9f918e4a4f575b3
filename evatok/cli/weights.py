"""`evatok weights`."""

from __future__ import annotations

from evatok.cli.options import AsJson
from evatok.cli.output import show


def weights_command(as_json: AsJson = False) -> None:
    """List every pretrained file that settings can ask for: where it is, whether it is right.

    \b
    Example:
        evatok weights
    """
    from evaluation.weights import rows

    show({"weights": rows()}, as_json)
