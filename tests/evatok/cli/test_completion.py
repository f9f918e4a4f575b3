"""`--version`, and completion by a shell."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from evatok.cli.app import COMPLETE, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"evatok {version('evatok')}\n"


@pytest.mark.parametrize(
    ("words", "found"), [("evatok recon", "reconstruct"), ("evatok sample --gui", "--guidance")]
)
def test_completion(
    words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETE, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0 and found in capsys.readouterr().out.split()
