"""Signals and streams: one line, the right exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evatok.cli.app import main
from evatok.cli.errors import message_for_user
from evatok.cli.process import is_importing
from evatok.core.errors import EvatokError

TABLE = "leaderboard show --published"


def shell(root: Path, words: str, redirect: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `evatok WORDS` as a shell runs it."""
    run = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$PYTHON" -m evatok {words} {redirect}'],
        cwd=root,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(root)} | environment,
        capture_output=True,
        timeout=120,
    )
    return run.returncode, run.stdout.decode("ascii", "replace"), run.stderr.decode()


@pytest.mark.parametrize("form", ["", "--json", "--format md"])
def test_full_stdout_is_one_line(root: Path, form: str) -> None:
    status, _, err = shell(root, f"{TABLE} {form}", ">/dev/full")
    assert status == 2 and err.startswith("evatok: stdout: No space left") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("redirect", "status"), [(">&-", 0), (">/dev/null 2>&-", 0), ("| true", 141)]
)
def test_closed_streams_are_quiet(root: Path, redirect: str, status: int) -> None:
    assert shell(root, TABLE, redirect) == (status, "", "")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_terminals_of_few_letters(root: Path, environment: dict[str, str]) -> None:
    status, out, err = shell(root, TABLE, **environment)
    assert status == 0 and err == "" and "\\xb7" in out  # the · of the titles


def test_an_interrupt_while_importing_is_not_swallowed(root: Path, tmp_path: Path) -> None:
    """A library whose import is interrupted, and that goes on as if nothing had been."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    import json\n"
        "except BaseException:\n    pass\n"
    )
    path = os.pathsep.join([str(tmp_path), str(root)])
    assert shell(root, "info nano", PYTHONPATH=path) == (130, "", "evatok: stopped\n")


def test_an_interrupt_at_work_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evatok.plan.describe.describe", stop)
    assert main(["info", "nano"]) == 130
    assert capsys.readouterr().err == "evatok: stopped\n"


def test_an_empty_file_is_not_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def empty(_name: str) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("evatok.plan.describe.describe", empty)
    assert main(["info", "nano"]) == 2
    assert capsys.readouterr().err.startswith("evatok: a file is empty or cut off (No data left")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "allow it"),
        (errno.EROFS, "can be written"),
        (errno.EIO, "check it"),
        (errno.EFBIG, "limit on file sizes"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_errors_of_the_disk(
    number: int,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_name: str) -> None:
        raise OSError(number, os.strerror(number), b"caf\xe9\n.npz")

    monkeypatch.setattr("evatok.plan.describe.describe", fail)
    assert main(["info", "nano"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("evatok: caf\\udce9 .npz: ") and remedy in err and err.count("\n") == 1


def raised_in(name: str, code: str) -> BaseException:
    """What code raises as a module of which there is no source."""
    with pytest.raises(Exception) as info:
        exec(compile(code, "<no source>", "exec"), {"__name__": name})
    return info.value


def test_sources_are_not_needed() -> None:
    """Zipped, frozen or typed in: what a package raises is told in one line all the same."""
    assert message_for_user(raised_in("tokenizer.x", "raise ValueError('levels\\nwrong')")) == (
        "levels wrong"
    )
    assert message_for_user(raised_in("tokenizer.x", "int('x')")) is None
    assert message_for_user(raised_in("numpy.x", "raise ValueError('theirs')")) is None
    assert message_for_user(EvatokError("from a worker process, without frames")) is not None


def test_importing_is_seen_in_the_frames() -> None:
    assert not is_importing(sys._getframe())
    assert not is_importing(None)
