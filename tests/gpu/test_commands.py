"""Every command that runs a model does so on a GPU; the cases are those of the simulated device.

Numbers are compared nowhere here: a token that rounding turns makes another clip.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evatok.cli.app import main
from tests.devices import test_commands as commands

pytestmark = pytest.mark.gpu
DEVICE = "cuda"

CASES: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (commands.test_reconstruct, {}),
    (commands.test_reconstruct_with_a_search, {}),
    (commands.test_reconstruct_refined, {}),
    (commands.test_sample, {"more": ()}),
    (commands.test_sample, {"more": ("--weights", "bfloat16")}),
    (commands.test_sample, {"more": ("--weights", "int8")}),
    (commands.test_sample, {"more": ("--weights", "bfloat16", "--graphs")}),
    (commands.test_sample_texts, {}),
    (commands.test_predict, {}),
    (commands.test_fvd, {}),
    *[(commands.test_evaluate, {"kind": kind}) for kind in ("rfvd", "gfvd", "fp")],
]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """As in the simulated device's tests, on the GPU only."""

    def command(device: str, *words: object) -> dict[str, Any]:
        text = [str(word).replace("OUT", str(tmp_path / device)) for word in words]
        capfd.readouterr()
        assert main([*text, "--device", DEVICE, "--json"]) == 0
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    return command


@pytest.mark.parametrize(
    ("case", "given"), CASES, ids=[f"{case.__name__}-{given}" for case, given in CASES]
)
def test_command(
    case: Callable[..., None],
    given: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "alike", lambda found, expected: None)
    names = [name for name in inspect.signature(case).parameters if name not in given]
    case(**given, **{name: request.getfixturevalue(name) for name in names})
